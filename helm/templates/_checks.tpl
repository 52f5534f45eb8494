{{/* What the schema can't say, or would say badly. */}}

{{- define "modiste.check" -}}
{{- include "modiste.checkKeys" . }}
{{- include "modiste.checkHome" . }}
{{- include "modiste.checkNetwork" . }}
{{- include "modiste.checkScaling" . }}
{{- include "modiste.checkParallel" . }}
{{- end }}

{{- define "modiste.checkKeys" -}}
{{- if and (not .Values.auth.enabled) (not .Values.auth.allowAnonymous) }}
{{- fail "auth.enabled is false: anybody who reaches the server could use it. Set auth.allowAnonymous=true if that is meant." }}
{{- end }}
{{- if and .Values.auth.enabled .Values.auth.allowAnonymous }}
{{- fail "auth.allowAnonymous is true while auth.enabled is true: keys would be asked for all the same. Set one of them." }}
{{- end }}
{{- if and .Values.auth.keys .Values.auth.existingSecret }}
{{- fail "auth.keys and auth.existingSecret are both set: the keys come from one place only." }}
{{- end }}
{{- if and .Values.database.url .Values.database.existingSecret }}
{{- fail "database.url and database.existingSecret are both set: the address comes from one place only." }}
{{- end }}
{{- end }}

{{- define "modiste.checkHome" -}}
{{- $persistence := .Values.persistence }}
{{- if $persistence.shared }}
{{- if and (include "modiste.hasSeveral" .) (not $persistence.enabled) }}
{{- fail "there may be several replicas and persistence.enabled is false: each pod would have versions and aliases of its own." }}
{{- end }}
{{- if and .Values.worker.enabled (not $persistence.enabled) }}
{{- fail "worker.enabled is true and persistence.enabled is false: the worker would not see the server's jobs. Set persistence.enabled, or a database and persistence.shared=false." }}
{{- end }}
{{- if and (or (include "modiste.hasSeveral" .) .Values.worker.enabled) (has "ReadWriteOncePod" $persistence.accessModes) }}
{{- fail "several pods share the volume and it is ReadWriteOncePod: the second pod could never start." }}
{{- end }}
{{- else }}
{{- if $persistence.existingClaim }}
{{- fail "persistence.shared is false and persistence.existingClaim is set: a claim is one volume, which all pods would share." }}
{{- end }}
{{- if not (include "modiste.hasDatabase" .) }}
{{- fail "persistence.shared is false: the pods need a database that they share. Set database.existingSecret or database.url." }}
{{- end }}
{{- range $name := list "store_url" "files_url" }}
{{- if not (index $.Values.settings $name) }}
{{- fail (printf "persistence.shared is false: set settings.%s, or each pod would keep that on a volume that others can't see." $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "modiste.checkNetwork" -}}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.egress) }}
{{- if include "modiste.hasDatabase" . }}
{{- fail "a database is set and networkPolicy.egress is empty: the pods could not reach the database. Let it out, and the cluster's DNS." }}
{{- end }}
{{- range $name := list "store_url" "files_url" }}
{{- if index $.Values.settings $name }}
{{- if not (hasPrefix "file://" (index $.Values.settings $name)) }}
{{- fail (printf "settings.%s is set and networkPolicy.egress is empty: the pods could not reach the store. Let it out, and the cluster's DNS." $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.settings.otlp_endpoint }}
{{- fail "settings.otlp_endpoint is set and networkPolicy.egress is empty: the pods could not reach the collector. Let it out, and the cluster's DNS." }}
{{- end }}
{{- end }}
{{- end }}

{{- define "modiste.checkScaling" -}}
{{- with .Values.autoscaling }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas." }}
{{- end }}
{{- if and (or (eq .kind "keda") .worker.enabled) (not .prometheus.address) }}
{{- fail "KEDA asks Prometheus: set autoscaling.prometheus.address, such as http://prometheus-operated.monitoring:9090." }}
{{- end }}
{{- if and .worker.enabled (not $.Values.worker.enabled) }}
{{- fail "autoscaling.worker.enabled is true and worker.enabled is false: there is no worker to scale." }}
{{- end }}
{{- if gt (int .worker.minReplicas) (int .worker.maxReplicas) }}
{{- fail "autoscaling.worker.minReplicas is above autoscaling.worker.maxReplicas." }}
{{- end }}
{{- end }}
{{- end }}

{{- define "modiste.checkParallel" -}}
{{- $parallel := .Values.parallel }}
{{- $gpus := mul (int $parallel.tensor) (int $parallel.pipeline) (int $parallel.data) }}
{{- $there := mul (int .Values.gpu.count) (int $parallel.nodes) }}
{{- if and (gt (int $gpus) 1) (ne (int $gpus) (int $there)) }}
{{- fail (printf "parallel asks for %d GPUs (tensor times pipeline times data), and gpu.count times parallel.nodes is %d." (int $gpus) (int $there)) }}
{{- end }}
{{- if gt (int $parallel.nodes) 1 }}
{{- if lt (int $gpus) 2 }}
{{- fail "parallel.nodes is above 1: say by parallel.tensor and parallel.pipeline how the engine is spread over their GPUs." }}
{{- end }}
{{- if not (include "modiste.hasDatabase" .) }}
{{- fail "parallel.nodes is above 1: every node reads the registry, so set database.existingSecret or database.url." }}
{{- end }}
{{- if not (and .Values.persistence.shared .Values.persistence.enabled (has "ReadWriteMany" .Values.persistence.accessModes)) }}
{{- fail "parallel.nodes is above 1: every node reads the base model and the adapters, so the volume must be shared and ReadWriteMany." }}
{{- end }}
{{- range $name := list "max_loras" "max_lora_rank" "max_resident_versions" }}
{{- if kindIs "invalid" (index $.Values.settings $name) }}
{{- fail (printf "parallel.nodes is above 1: set settings.%s, since all nodes of an engine must be started with the same." $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.ray.enabled }}
{{- if not .Values.worker.enabled }}
{{- fail "ray.enabled is true and worker.enabled is false: the worker is what gives jobs to the cluster." }}
{{- end }}
{{- if not (and .Values.persistence.shared .Values.persistence.enabled (has "ReadWriteMany" .Values.persistence.accessModes) (include "modiste.hasDatabase" .)) }}
{{- fail "ray.enabled is true: trainers on other nodes need a database, and the home on a shared volume that is ReadWriteMany." }}
{{- end }}
{{- end }}
{{- end }}
