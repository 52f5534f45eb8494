{{/* The pod that does fine-tuning jobs. */}}

{{- define "modiste.workerArguments" -}}
{{- $worker := .Values.worker }}
{{- $arguments := list "worker" "--jobs" (toString (int $worker.jobs)) "--grace-s" (toString (int $worker.graceSeconds)) "--alive" "/tmp/alive" "--log-level" .Values.settings.log_level "--log-format" .Values.settings.log_format }}
{{- if .Values.ray.enabled }}
{{- $arguments = concat $arguments (list "--executor" "ray-jobs" "--ray-address" (printf "http://%s-head-svc:8265" (include "modiste.rayName" .)) "--ray-cpus" (toString (int .Values.ray.jobCpus))) }}
{{- end }}
{{- toJson $arguments }}
{{- end }}

{{/* Beside the servers, where they share what only one node has. */}}
{{- define "modiste.workerAffinity" -}}
{{- if .Values.worker.affinity }}
{{- toYaml .Values.worker.affinity }}
{{- else if not (include "modiste.isApart" .) }}
{{- include "modiste.besideServers" . }}
{{- end }}
{{- end }}

{{/*
The worker listens nowhere. It touches a file on every round: there is one once it works, and an old
one means that it is stuck, while its leases would keep others from its jobs.
*/}}
{{- define "modiste.workerProbes" -}}
startupProbe:
  exec:
    command: [test, -e, /tmp/alive]
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 60
readinessProbe:
  exec:
    command: [test, -e, /tmp/alive]
  periodSeconds: 30
  timeoutSeconds: 5
  failureThreshold: 1
livenessProbe:
  exec:
    command:
      - sh
      - -c
      - test -n "$(find /tmp/alive -mmin -{{ .stuckAfterMinutes }})"
  periodSeconds: 60
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}
