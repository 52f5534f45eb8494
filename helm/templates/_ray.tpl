{{- define "modiste.rayImage" -}}
{{- with .Values.ray.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository .tag }}
{{- end }}
{{- end }}
{{- end }}

{{/*
A pod of the Ray cluster, with the home at the same path as everywhere. The operator gives it its
command and its probes. Takes the root, the resources and the number of GPUs.
*/}}
{{- define "modiste.rayTemplate" -}}
{{- $root := index . 0 -}}
metadata:
  labels:
    {{- include "modiste.componentLabels" (list $root "ray") | nindent 4 }}
spec:
  serviceAccountName: {{ include "modiste.serviceAccountName" $root }}
  {{- include "modiste.podBasics" $root | nindent 2 }}
  {{- with include "modiste.podPlacement" (list $root $root.Values.ray (index . 2) "") | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
    - name: ray
      image: {{ include "modiste.rayImage" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      env:
        {{- include "modiste.env" (list $root (index . 2)) | nindent 8 }}
      securityContext:
        {{- include "modiste.securityContext" $root | nindent 8 }}
      resources:
        {{- include "modiste.resourcesOf" (list $root (index . 1) (index . 2)) | nindent 8 }}
      volumeMounts:
        {{- include "modiste.volumeMounts" $root | nindent 8 }}
        {{- include "modiste.configMount" $root | nindent 8 }}
  volumes:
    {{- include "modiste.volumes" $root | nindent 4 }}
{{- end }}
