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

{{/* Requests and limits of the server: GPUs are requested by their limit. */}}
{{- define "modiste.resources" -}}
{{- $resources := deepCopy .Values.resources }}
{{- if gt (int .Values.gpu.count) 0 }}
{{- $limits := set $resources.limits .Values.gpu.resource (int .Values.gpu.count) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* A probe's times, from `probes.NAME`. Takes the dictionary. */}}
{{- define "modiste.probeTimes" -}}
periodSeconds: {{ .periodSeconds }}
timeoutSeconds: {{ .timeoutSeconds }}
failureThreshold: {{ .failureThreshold }}
{{- end }}

{{/*
On CPU the engine would start a thread for every core of the node, whatever the pod's limit; so it
gets as many as the limit has, not bound to cores. `extraEnv` can say otherwise.
*/}}
{{- define "modiste.env" -}}
- name: MODISTE_HOME
  value: /var/lib/modiste
{{- if .Values.database.existingSecret }}
- name: MODISTE_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.database.existingSecret }}
      key: {{ .Values.database.secretKey }}
{{- end }}
{{- if eq (int .Values.gpu.count) 0 }}
{{- $own := list }}
{{- range .Values.extraEnv }}
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
{{- with .Values.extraEnv }}
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

{{- define "modiste.volumes" -}}
- name: home
  {{- if .Values.persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ include "modiste.claimName" . }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.persistence.size }}
  {{- end }}
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
{{- if .Values.auth.enabled }}
- name: keys
  secret:
    secretName: {{ include "modiste.secretName" . }}
    defaultMode: 0440
    items:
      - key: {{ .Values.auth.secretKey }}
        path: api-keys
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
Several pods share one SQLite database in WAL mode, whose index is memory of one node, or at least a
volume; only with another database and a volume for many nodes they may part.
*/}}
{{- define "modiste.affinity" -}}
{{- $apart := and .Values.database.existingSecret (has "ReadWriteMany" .Values.persistence.accessModes) }}
{{- if .Values.affinity }}
{{- toYaml .Values.affinity }}
{{- else if and (gt (int .Values.replicas) 1) (not $apart) -}}
podAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels:
          {{- include "modiste.selectorLabels" . | nindent 10 }}
{{- end }}
{{- end }}
