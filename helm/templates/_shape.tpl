{{/* How many pods there are, and what they share; each answers `true` or nothing. */}}

{{/* The most server pods that there may be. */}}
{{- define "modiste.mostReplicas" -}}
{{- if eq .Values.autoscaling.kind "none" }}
{{- int .Values.replicas }}
{{- else }}
{{- int .Values.autoscaling.maxReplicas }}
{{- end }}
{{- end }}

{{- define "modiste.hasSeveral" -}}
{{- if gt (int (include "modiste.mostReplicas" .)) 1 }}true{{ end }}
{{- end }}

{{- define "modiste.hasDatabase" -}}
{{- if or .Values.database.url .Values.database.existingSecret }}true{{ end }}
{{- end }}

{{/* Whether pods may be on different nodes: SQLite in WAL mode has an index in one node's memory. */}}
{{- define "modiste.isApart" -}}
{{- $everywhere := or (not .Values.persistence.shared) (has "ReadWriteMany" .Values.persistence.accessModes) }}
{{- if and (include "modiste.hasDatabase" .) $everywhere }}true{{ end }}
{{- end }}

{{- define "modiste.hasMigration" -}}
{{- if and (include "modiste.hasDatabase" .) .Values.database.migration.enabled }}true{{ end }}
{{- end }}

{{/* Arguments of vLLM: those of the values, and how the engine is spread over GPUs. */}}
{{- define "modiste.vllmArguments" -}}
{{- $arguments := .Values.settings.vllm_args }}
{{- with .Values.parallel }}
{{- if gt (int .tensor) 1 }}
{{- $arguments = concat $arguments (list "--tensor-parallel-size" (toString (int .tensor))) }}
{{- end }}
{{- if gt (int .pipeline) 1 }}
{{- $arguments = concat $arguments (list "--pipeline-parallel-size" (toString (int .pipeline))) }}
{{- end }}
{{- if gt (int .data) 1 }}
{{- $arguments = concat $arguments (list "--data-parallel-size" (toString (int .data))) }}
{{- end }}
{{- end }}
{{- toJson $arguments }}
{{- end }}

{{/* Those of one node of several. Takes the root and the node's number. */}}
{{- define "modiste.nodeArguments" -}}
{{- $root := index . 0 }}
{{- $own := list "--nnodes" (toString (int $root.Values.parallel.nodes)) "--node-rank" (index . 1) "--master-addr" "$(LWS_LEADER_ADDRESS)" }}
{{- concat (include "modiste.vllmArguments" $root | fromJsonArray) $own | toJson }}
{{- end }}
