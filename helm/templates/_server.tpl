{{/* The server's pod, of a Deployment or of the leaders of a LeaderWorkerSet. */}}

{{/*
Several pods share one SQLite database in WAL mode, whose index is memory of one node, or at least a
volume; only with another database and a volume for many nodes, or of their own, they may part.
*/}}
{{- define "modiste.affinity" -}}
{{- if .Values.affinity }}
{{- toYaml .Values.affinity }}
{{- else if and (include "modiste.hasSeveral" .) (not (include "modiste.isApart" .)) -}}
{{- include "modiste.besideServers" . }}
{{- end }}
{{- end }}

{{- define "modiste.besideServers" -}}
podAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels:
          {{- include "modiste.selectorLabels" . | nindent 10 }}
{{- end }}

{{/* Pods that may part do so, zones first; a full zone keeps none from starting. */}}
{{- define "modiste.spread" -}}
{{- if .Values.topologySpreadConstraints }}
{{- toYaml .Values.topologySpreadConstraints }}
{{- else if and (include "modiste.hasSeveral" .) (include "modiste.isApart" .) }}
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "modiste.selectorLabels" $ | nindent 6 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "modiste.serverTemplate" -}}
metadata:
  labels:
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- include "modiste.selectorLabels" . | nindent 4 }}
  annotations:
    {{- include "modiste.checksums" . | nindent 4 }}
    {{- if .Values.auth.enabled }}
    checksum/keys: {{ include "modiste.keysChecksum" . }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "modiste.serviceAccountName" . }}
  {{- include "modiste.podBasics" . | nindent 2 }}
  # preStop, the server's drain, and 15 s for the engine to end.
  terminationGracePeriodSeconds: {{ add .Values.preStopSeconds .Values.settings.shutdown_grace_s 15 }}
  {{- with include "modiste.podPlacement" (list . .Values .Values.gpu.count (include "modiste.affinity" .)) | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with include "modiste.spread" . | trim }}
  topologySpreadConstraints:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with include "modiste.baseContainer" (list . (include "modiste.image" .) .Values.gpu.count .Values.resources) | trim }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    {{- include "modiste.serverContainer" . | nindent 4 }}
  volumes:
    {{- include "modiste.volumes" . | nindent 4 }}
    {{- if .Values.auth.enabled }}
    {{- include "modiste.keysVolume" . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "modiste.serverContainer" -}}
- name: server
  image: {{ include "modiste.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- if eq (include "modiste.serverKind" .) "Deployment" }}
  args: ["serve"]
  {{- else }}
  args: {{ concat (list "serve" "--") (include "modiste.nodeArguments" (list . "0") | fromJsonArray) | toJson }}
  {{- end }}
  ports:
    - name: http
      containerPort: {{ .Values.settings.port }}
  env:
    {{- include "modiste.env" (list . .Values.gpu.count) | nindent 4 }}
  securityContext:
    {{- include "modiste.securityContext" . | nindent 4 }}
  resources:
    {{- include "modiste.resourcesOf" (list . .Values.resources .Values.gpu.count) | nindent 4 }}
  startupProbe:
    httpGet: {path: /health/live, port: http}
    {{- include "modiste.probeTimes" .Values.probes.startup | nindent 4 }}
  readinessProbe:
    httpGet: {path: /health/ready, port: http}
    {{- include "modiste.probeTimes" .Values.probes.readiness | nindent 4 }}
  livenessProbe:
    httpGet: {path: /health/live, port: http}
    {{- include "modiste.probeTimes" .Values.probes.liveness | nindent 4 }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ .Values.preStopSeconds }}
  volumeMounts:
    {{- include "modiste.volumeMounts" . | nindent 4 }}
    {{- include "modiste.configMount" . | nindent 4 }}
    {{- if .Values.auth.enabled }}
    {{- include "modiste.keysMount" . | nindent 4 }}
    {{- end }}
{{- end }}
