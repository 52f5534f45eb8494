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

{{/* The workload of the server: a Deployment, or groups of pods where one engine spans nodes. */}}
{{- define "modiste.serverKind" -}}
{{- ternary "LeaderWorkerSet" "Deployment" (gt (int .Values.parallel.nodes) 1) }}
{{- end }}

{{/* LeaderWorkerSet's operator makes a Service of its name, which must not be ours. */}}
{{- define "modiste.workloadName" -}}
{{ include "modiste.fullname" . }}{{ if eq (include "modiste.serverKind" .) "LeaderWorkerSet" }}-group{{ end }}
{{- end }}

{{- define "modiste.workerName" -}}
{{ include "modiste.fullname" . }}-worker
{{- end }}

{{- define "modiste.rayName" -}}
{{- /* KubeRay cuts `NAME-head-svc` at 50 characters */ -}}
{{ include "modiste.fullname" . | trunc 37 | trimSuffix "-" }}-ray
{{- end }}

{{- define "modiste.loadtestName" -}}
{{- /* a Job can't be changed, so each revision has its own */ -}}
{{ include "modiste.fullname" . }}-load-{{ .Release.Revision }}
{{- end }}

{{- define "modiste.migrationName" -}}
{{ include "modiste.fullname" . }}-migrate
{{- end }}

{{- define "modiste.databaseSecretName" -}}
{{- default (printf "%s-database" (include "modiste.fullname" .)) .Values.database.existingSecret }}
{{- end }}

{{- define "modiste.testName" -}}
{{ include "modiste.fullname" . }}-test
{{- end }}

{{/* The image of a part with so many GPUs. Takes the root and the number. */}}
{{- define "modiste.imageFor" -}}
{{- $root := index . 0 }}
{{- with $root.Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- $variant := ternary "gpu" "cpu" (gt (int (index $ 1)) 0) }}
{{- printf "%s:%s" .repository (default (printf "%s-%s" $root.Chart.AppVersion $variant) .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "modiste.image" -}}
{{- include "modiste.imageFor" (list . .Values.gpu.count) }}
{{- end }}

{{/* Labels that choose the pods of one component. Takes the root and the component. */}}
{{- define "modiste.componentLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "modiste.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "modiste.selectorLabels" -}}
{{- include "modiste.componentLabels" (list . "server") }}
{{- end }}

{{/* Labels of an object that belongs to a component. Takes the root and the component. */}}
{{- define "modiste.labelsOf" -}}
{{- $root := index . 0 -}}
{{ include "modiste.componentLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "modiste.labels" -}}
{{- include "modiste.labelsOf" (list . "server") }}
{{- end }}

{{/* The labels of the `helm test` pod: no Service and no selector of the server matches it. */}}
{{- define "modiste.testLabels" -}}
{{- include "modiste.componentLabels" (list . "test") }}
{{- end }}
