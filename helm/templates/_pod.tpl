{{/* What all pods of the chart share. */}}

{{- define "modiste.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "modiste.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* What holds for every pod, beside its service account. Nothing here needs rights in the cluster. */}}
{{- define "modiste.podBasics" -}}
automountServiceAccountToken: false
# Kubernetes would set MODISTE_PORT and others, which the server reads as settings.
enableServiceLinks: false
securityContext:
  {{- include "modiste.podSecurityContext" . | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/*
Where a pod may run. Takes the root, the part's values (its nodeSelector, tolerations and
priorityClassName), its number of GPUs, and its affinity as text.
*/}}
{{- define "modiste.podPlacement" -}}
{{- $root := index . 0 }}
{{- $part := index . 1 }}
{{- $lines := list }}
{{- with $part.priorityClassName }}
{{- $lines = append $lines (dict "priorityClassName" .) }}
{{- end }}
{{- if and (gt (int (index . 2)) 0) $root.Values.gpu.runtimeClassName }}
{{- $lines = append $lines (dict "runtimeClassName" $root.Values.gpu.runtimeClassName) }}
{{- end }}
{{- with $part.nodeSelector }}
{{- $lines = append $lines (dict "nodeSelector" .) }}
{{- end }}
{{- with $part.tolerations }}
{{- $lines = append $lines (dict "tolerations" .) }}
{{- end }}
{{- with index . 3 }}
{{- $lines = append $lines (dict "affinity" (fromYaml .)) }}
{{- end }}
{{- range $lines }}
{{- toYaml . }}
{{ end }}
{{- end }}

{{/* Requests and limits: GPUs are requested by their limit. Takes the root, resources and GPUs. */}}
{{- define "modiste.resourcesOf" -}}
{{- $resources := deepCopy (index . 1) }}
{{- if gt (int (index . 2)) 0 }}
{{- $unused := set $resources.limits (index . 0).Values.gpu.resource (int (index . 2)) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* A probe's times, from `probes.NAME`. Takes the dictionary. */}}
{{- define "modiste.probeTimes" -}}
periodSeconds: {{ .periodSeconds }}
timeoutSeconds: {{ .timeoutSeconds }}
failureThreshold: {{ .failureThreshold }}
{{- end }}

{{- define "modiste.databaseEnv" -}}
{{- if include "modiste.hasDatabase" . -}}
- name: MODISTE_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "modiste.databaseSecretName" . }}
      key: {{ .Values.database.secretKey }}
{{- end }}
{{- end }}

{{/*
Takes the root and the number of GPUs. On CPU the engine would start a thread for every core of the
node, whatever the pod's limit; so it gets as many as the limit has, not bound to cores. `extraEnv`
can say otherwise.
*/}}
{{- define "modiste.env" -}}
{{- $root := index . 0 -}}
- name: MODISTE_HOME
  value: /var/lib/modiste
{{- with include "modiste.databaseEnv" $root }}
{{ . }}
{{- end }}
{{- if eq (int (index . 1)) 0 }}
{{- $own := list }}
{{- range $root.Values.extraEnv }}
{{- $own = append $own .name }}
{{- end }}
{{- if not (has "VLLM_CPU_OMP_THREADS_BIND" $own) }}
- name: VLLM_CPU_OMP_THREADS_BIND
  value: nobind
{{- end }}
{{- if not (has "OMP_NUM_THREADS" $own) }}
- name: OMP_NUM_THREADS
  valueFrom:
    resourceFieldRef:
      resource: limits.cpu
{{- end }}
{{- end }}
{{- with $root.Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "modiste.volumeMounts" -}}
- name: home
  mountPath: /var/lib/modiste
- name: scratch
  mountPath: /tmp
- name: shared-memory
  mountPath: /dev/shm
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "modiste.configMount" -}}
- name: config
  mountPath: /var/lib/modiste/modiste.yaml
  subPath: modiste.yaml
  readOnly: true
{{- end }}

{{- define "modiste.keysMount" -}}
- name: keys
  mountPath: /etc/modiste/keys
  readOnly: true
{{- end }}

{{/* The home: one claim for all pods, a volume of each pod's own, or a folder that ends with it. */}}
{{- define "modiste.homeVolume" -}}
- name: home
  {{- if not .Values.persistence.enabled }}
  emptyDir:
    sizeLimit: {{ .Values.persistence.size }}
  {{- else if .Values.persistence.shared }}
  persistentVolumeClaim:
    claimName: {{ include "modiste.claimName" . }}
  {{- else }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        {{- include "modiste.claimSpec" (list . (list "ReadWriteOnce")) | nindent 8 }}
  {{- end }}
{{- end }}

{{/* Takes the root and the access modes. */}}
{{- define "modiste.claimSpec" -}}
{{- $persistence := (index . 0).Values.persistence -}}
accessModes:
  {{- toYaml (index . 1) | nindent 2 }}
{{- with $persistence.storageClass }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ $persistence.size }}
{{- end }}

{{- define "modiste.volumes" -}}
{{ include "modiste.homeVolume" . }}
- name: scratch
  emptyDir:
    sizeLimit: {{ .Values.scratch }}
- name: shared-memory
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.sharedMemory }}
- name: config
  configMap:
    name: {{ include "modiste.configName" . }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "modiste.keysVolume" -}}
- name: keys
  secret:
    secretName: {{ include "modiste.secretName" . }}
    defaultMode: 0440
    items:
      - key: {{ .Values.auth.secretKey }}
        path: api-keys
{{- end }}

{{/*
The base model in the home, before anything reads it: nothing is copied where it is there. Takes the
root, the image and the number of GPUs; a pod that uses a GPU needs none for this.
*/}}
{{- define "modiste.baseContainer" -}}
{{- $root := index . 0 }}
{{- with $root.Values.base }}
{{- if .source -}}
- name: base
  image: {{ index $ 1 }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  args: ["base", "add", {{ .source | quote }}, "--name", {{ .name | quote }}, "--if-missing"]
  env:
    {{- include "modiste.env" (list $root (index $ 2)) | nindent 4 }}
  securityContext:
    {{- include "modiste.securityContext" $root | nindent 4 }}
  resources:
    {{- toYaml (index $ 3) | nindent 4 }}
  volumeMounts:
    {{- include "modiste.volumeMounts" $root | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}

{{/* What a component's pods are told by: when one of these changes, they restart. */}}
{{- define "modiste.checksums" -}}
checksum/config: {{ include "modiste.settings" . | sha256sum }}
{{- if include "modiste.hasDatabase" . }}
checksum/database: {{ include "modiste.databaseChecksum" . }}
{{- end }}
{{- end }}
