{{/*
A further node of an engine that spans several: vLLM without a front end. It has no port to probe;
when it ends, or the leader does, the group starts again.
*/}}
{{- define "modiste.engineNodeTemplate" -}}
metadata:
  labels:
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- include "modiste.componentLabels" (list . "engine-node") | nindent 4 }}
  annotations:
    {{- include "modiste.checksums" . | nindent 4 }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "modiste.serviceAccountName" . }}
  {{- include "modiste.podBasics" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ add .Values.preStopSeconds .Values.settings.shutdown_grace_s 15 }}
  {{- with include "modiste.podPlacement" (list . .Values .Values.gpu.count "") | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with include "modiste.baseContainer" (list . (include "modiste.image" .) .Values.gpu.count .Values.resources) | trim }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: engine
      image: {{ include "modiste.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: ["python", "/etc/modiste/node/engine_node.py"]
      args: {{ include "modiste.nodeArguments" (list . "$(LWS_WORKER_INDEX)") }}
      env:
        {{- include "modiste.env" (list . .Values.gpu.count) | nindent 8 }}
      securityContext:
        {{- include "modiste.securityContext" . | nindent 8 }}
      resources:
        {{- include "modiste.resourcesOf" (list . .Values.resources .Values.gpu.count) | nindent 8 }}
      lifecycle:
        # The leader drains first; without this node its engine would end at once.
        preStop:
          sleep:
            seconds: {{ add .Values.preStopSeconds .Values.settings.shutdown_grace_s }}
      volumeMounts:
        {{- include "modiste.volumeMounts" . | nindent 8 }}
        {{- include "modiste.configMount" . | nindent 8 }}
        - name: node
          mountPath: /etc/modiste/node
          readOnly: true
  volumes:
    {{- include "modiste.volumes" . | nindent 4 }}
    - name: node
      configMap:
        name: {{ include "modiste.configName" . }}
        items:
          - key: engine_node.py
            path: engine_node.py
{{- end }}
