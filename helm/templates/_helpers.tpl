{{/* Names and labels. */}}

{{- define "modiste.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "modiste.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "modiste.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "modiste.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "modiste.configName" -}}
{{ include "modiste.fullname" . }}-config
{{- end }}

{{- define "modiste.dashboardName" -}}
{{ include "modiste.fullname" . }}-dashboard
{{- end }}

{{- define "modiste.secretName" -}}
{{- default (printf "%s-keys" (include "modiste.fullname" .)) .Values.auth.existingSecret }}
{{- end }}

{{- define "modiste.claimName" -}}
{{- default (printf "%s-home" (include "modiste.fullname" .)) .Values.persistence.existingClaim }}
{{- end }}

{{- define "modiste.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "modiste.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "modiste.testName" -}}
{{ include "modiste.fullname" . }}-test
{{- end }}

{{- define "modiste.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- $variant := ternary "gpu" "cpu" (gt (int .Values.gpu.count) 0) }}
{{- printf "%s:%s" .Values.image.repository (default (printf "%s-%s" .Chart.AppVersion $variant) .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "modiste.selectorLabels" -}}
app.kubernetes.io/name: {{ include "modiste.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "modiste.labels" -}}
{{ include "modiste.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The labels of the `helm test` pod: no Service and no selector of the server matches it. */}}
{{- define "modiste.testLabels" -}}
app.kubernetes.io/name: {{ include "modiste.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
{{- end }}
