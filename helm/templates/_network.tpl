{{/* Pods of one component, as a NetworkPolicy names them. Takes the root and the component. */}}
{{- define "modiste.peers" -}}
- podSelector:
    matchLabels:
      {{- include "modiste.componentLabels" . | nindent 6 }}
{{- end }}
