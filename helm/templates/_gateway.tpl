{{/* Headers that a request must have. Takes a list of names and values. */}}
{{- define "modiste.headerMatches" -}}
{{- if . -}}
headers:
  {{- range . }}
  - type: Exact
    name: {{ .name }}
    value: {{ .value | quote }}
  {{- end }}
{{- end }}
{{- end }}
