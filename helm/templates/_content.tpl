{{/* What the ConfigMap and the Secret hold. The Deployment hashes it, so that pods restart. */}}

{{- define "modiste.settings" -}}
{{- $settings := dict "host" "0.0.0.0" }}
{{- range $key, $value := .Values.settings }}
{{- if not (kindIs "invalid" $value) }}
{{- /* Helm reads whole numbers as floats. */}}
{{- if kindIs "float64" $value }}
{{- $settings = set $settings $key (ternary (int64 $value) $value (eq (floor $value) $value)) }}
{{- else }}
{{- $settings = set $settings $key $value }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (not (hasKey $settings "base")) .Values.base.name }}
{{- $settings = set $settings "base" .Values.base.name }}
{{- end }}
{{- $settings = set $settings "vllm_args" (include "modiste.vllmArguments" . | fromJsonArray) }}
{{- if .Values.worker.enabled }}
{{- /* its own worker would take the jobs, and the memory, that the other is there for */}}
{{- $settings = set $settings "worker_jobs" 0 }}
{{- end }}
{{- if .Values.auth.enabled }}
{{- $settings = set $settings "api_keys_file" "/etc/modiste/keys/api-keys" }}
{{- else }}
{{- $settings = set $settings "allow_anonymous" true }}
{{- end }}
{{- toYaml $settings }}
{{- end }}

{{/*
The keys, one a line: those of the values, else those that the cluster has, else one new key. It is
kept for the rest of the rendering, so that the Secret and the Deployment's hash agree on it.
*/}}
{{- define "modiste.keys" -}}
{{- if not (hasKey .Values.auth "rendered") }}
{{- $found := lookup "v1" "Secret" .Release.Namespace (include "modiste.secretName" .) }}
{{- $keys := join "\n" .Values.auth.keys }}
{{- if and (not $keys) $found }}
{{- $keys = index $found.data .Values.auth.secretKey | default "" | b64dec | trim }}
{{- end }}
{{- $unused := set .Values.auth "rendered" (default (randAlphaNum 48) $keys) }}
{{- end }}
{{- .Values.auth.rendered }}
{{- end }}

{{/* Changes with the keys: those of this chart's Secret, or of yours when it can be read. */}}
{{- define "modiste.keysChecksum" -}}
{{- if .Values.auth.existingSecret }}
{{- lookup "v1" "Secret" .Release.Namespace .Values.auth.existingSecret | dig "data" dict | toJson | sha256sum }}
{{- else }}
{{- include "modiste.keys" . | sha256sum }}
{{- end }}
{{- end }}

{{/* Changes with the database's address: that of the values, or of your Secret when it can be read. */}}
{{- define "modiste.databaseChecksum" -}}
{{- if .Values.database.url }}
{{- .Values.database.url | sha256sum }}
{{- else }}
{{- lookup "v1" "Secret" .Release.Namespace .Values.database.existingSecret | dig "data" dict | toJson | sha256sum }}
{{- end }}
{{- end }}
