{{/* What the autoscalers look at: metrics of the servers, in Prometheus. */}}

{{/* Chooses this release's series, by the labels that the operator's monitors give them. */}}
{{- define "modiste.series" -}}
{{- if .Values.autoscaling.prometheus.selector }}
{{- .Values.autoscaling.prometheus.selector }}
{{- else if eq .Values.monitoring.monitor "pod" }}
{{- printf "namespace=%q,pod=~%q" .Release.Namespace (printf "%s-.+" (include "modiste.fullname" .)) }}
{{- else }}
{{- printf "namespace=%q,service=%q" .Release.Namespace (include "modiste.fullname" .) }}
{{- end }}
{{- end }}

{{/* Seconds that nineteen of twenty requests waited for the engine at most, over two minutes. */}}
{{- define "modiste.queueTimeQuery" -}}
histogram_quantile(0.95, sum by (le) (rate(modiste_queue_seconds_bucket{ {{- include "modiste.series" . }},priority="interactive"}[2m]))) >= 0
{{- end }}

{{- define "modiste.runningQuery" -}}
sum(modiste_running_sequences{ {{- include "modiste.series" . -}} })
{{- end }}

{{- define "modiste.queuedQuery" -}}
sum(modiste_queued_requests{ {{- include "modiste.series" . -}} })
{{- end }}

{{/* Jobs that wait or are at work; all servers tell the same of the database that they share. */}}
{{- define "modiste.jobsQuery" -}}
sum(max by (status) (modiste_jobs{ {{- include "modiste.series" . }},status=~"queued|validating_files|running"}))
{{- end }}

{{/* Pods come quickly and go slowly: each loads its model first. */}}
{{- define "modiste.scalingBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - type: Pods
      value: {{ .scaleUpPods }}
      periodSeconds: 60
scaleDown:
  stabilizationWindowSeconds: {{ .scaleDownSeconds }}
  policies:
    - type: Pods
      value: 1
      periodSeconds: 60
{{- end }}

{{- define "modiste.scaleTarget" -}}
apiVersion: {{ ternary "apps/v1" "leaderworkerset.x-k8s.io/v1" (eq (include "modiste.serverKind" .) "Deployment") }}
kind: {{ include "modiste.serverKind" . }}
name: {{ include "modiste.workloadName" . }}
{{- end }}
