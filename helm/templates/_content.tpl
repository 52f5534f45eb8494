{{/* What the ConfigMap and the Secret hold. The Deployment hashes it, so that pods restart. */}}

{{- define "modiste.settings" -}}
{{- $settings := dict "host" "0.0.0.0" }}
{{- range $key, $value := .Values.settings }}
{{- if not (kindIs "invalid" $value) }}
{{- /* Helm reads whole numbers as floats. */}}
{{- $settings = set $settings $key (ternary (int $value) $value (kindIs "float64" $value)) }}
{{- end }}
{{- end }}
{{- if and (not (hasKey $settings "base")) .Values.base.name }}
{{- $settings = set $settings "base" .Values.base.name }}
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

{{/* Changes with the database's address, when the Secret can be read. */}}
{{- define "modiste.databaseChecksum" -}}
{{- lookup "v1" "Secret" .Release.Namespace .Values.database.existingSecret | dig "data" dict | toJson | sha256sum }}
{{- end }}

{{/* What the schema can't say, or would say badly. */}}
{{- define "modiste.check" -}}
{{- if and (not .Values.auth.enabled) (not .Values.auth.allowAnonymous) }}
{{- fail "auth.enabled is false: anybody who reaches the server could use it. Set auth.allowAnonymous=true if that is meant." }}
{{- end }}
{{- if and .Values.auth.enabled .Values.auth.allowAnonymous }}
{{- fail "auth.allowAnonymous is true while auth.enabled is true: keys would be asked for all the same. Set one of them." }}
{{- end }}
{{- if and .Values.auth.keys .Values.auth.existingSecret }}
{{- fail "auth.keys and auth.existingSecret are both set: the keys come from one place only." }}
{{- end }}
{{- if and .Values.database.existingSecret .Values.networkPolicy.enabled (not .Values.networkPolicy.egress) }}
{{- fail "database.existingSecret is set and networkPolicy.egress is empty: the pods could not reach the database. Let it out, and the cluster's DNS." }}
{{- end }}
{{- if and .Values.settings.otlp_endpoint .Values.networkPolicy.enabled (not .Values.networkPolicy.egress) }}
{{- fail "settings.otlp_endpoint is set and networkPolicy.egress is empty: the pods could not reach the collector. Let it out, and the cluster's DNS." }}
{{- end }}
{{- if gt (int .Values.replicas) 1 }}
{{- if not .Values.persistence.enabled }}
{{- fail "replicas is above 1 and persistence.enabled is false: each pod would have versions and aliases of its own." }}
{{- end }}
{{- if has "ReadWriteOncePod" .Values.persistence.accessModes }}
{{- fail "replicas is above 1 and the volume is ReadWriteOncePod: the second pod could never start." }}
{{- end }}
{{- end }}
{{- end }}
