{{- define "modiste.loadtestArguments" -}}
{{- $load := .Values.loadtest }}
{{- $scenario := ternary "/loadtest/scenario.yaml" $load.scenario (not (empty $load.definition)) }}
{{- $arguments := list "loadtest" "--host" (printf "http://%s:%d" (include "modiste.fullname" .) (int .Values.service.port)) "--scenario" $scenario "--out" "/tmp/loadtest" }}
{{- with $load.model }}
{{- $arguments = concat $arguments (list "--model" .) }}
{{- end }}
{{- toJson $arguments }}
{{- end }}
