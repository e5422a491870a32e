{{- define "autoopt.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough for the longest suffix. */}}
{{- define "autoopt.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else if contains (include "autoopt.name" .) .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "autoopt.name" .) | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* (list root component) */}}
{{- define "autoopt.selectorLabels" -}}
app.kubernetes.io/name: {{ include "autoopt.name" (first .) }}
app.kubernetes.io/instance: {{ (first .).Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end -}}

{{/* (list root component) */}}
{{- define "autoopt.labels" -}}
{{ include "autoopt.selectorLabels" . }}
app.kubernetes.io/version: {{ (first .).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (first .).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (first .).Chart.Name (first .).Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "autoopt.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{/* (list root account) */}}
{{- define "autoopt.serviceAccount" -}}
{{- default (printf "%s-%s" (include "autoopt.fullname" (first .)) (last .)) (get (first .).Values.serviceAccounts (last .)).name -}}
{{- end -}}

{{- define "autoopt.postgresHost" -}}
{{- if .Values.postgresql.enabled }}{{ include "autoopt.fullname" . }}-postgresql{{ else }}{{ .Values.postgresql.postgresqlHost }}{{ end -}}
{{- end -}}

{{- define "autoopt.postgresSecret" -}}
{{- default (printf "%s-postgresql" (include "autoopt.fullname" .)) .Values.global.postgresqlSecretName -}}
{{- end -}}

{{/* Name of a Secret of `secrets`: the one that exists, the chart's own, or nothing. (list root group) */}}
{{- define "autoopt.secret" -}}
{{- $group := get (first .).Values.secrets (last .) -}}
{{- if or (get $group "value") (get $group "env") -}}
{{- printf "%s-%s" (include "autoopt.fullname" (first .)) (kebabcase (last .)) -}}
{{- else -}}
{{- $group.existingSecret -}}
{{- end -}}
{{- end -}}

{{/* What every process of Dagster's needs. */}}
{{- define "autoopt.instanceEnv" -}}
- name: DAGSTER_HOME
  value: {{ .Values.global.dagsterHome | quote }}
- name: DAGSTER_PG_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ include "autoopt.postgresSecret" . }}
      key: postgresql-password
{{- end -}}

{{/* Stores and servers, for code server and runs. */}}
{{- define "autoopt.connectionsEnv" -}}
{{- with include "autoopt.secret" (list . "configStore") }}
- name: AUTOOPT_CONFIG_STORE_URL
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.secrets.configStore.key }}
{{- end }}
{{- with include "autoopt.secret" (list . "phoenix") }}
- name: AUTOOPT_PHOENIX_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.secrets.phoenix.key }}
{{- end }}
{{- end -}}

{{/* Settings and variables from Secrets. (list root groups) */}}
{{- define "autoopt.envFrom" -}}
{{- $root := first . -}}
- configMapRef:
    name: {{ include "autoopt.fullname" $root }}-settings
{{- range last . }}
{{- with include "autoopt.secret" (list $root .) }}
- secretRef:
    name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* (list root component) */}}
{{- define "autoopt.podMetadata" -}}
{{- $root := first . -}}
{{- $own := get $root.Values (last .) -}}
annotations:
  checksum/instance: {{ include (print $root.Template.BasePath "/configmap-instance.yaml") $root | sha256sum }}
  checksum/settings: {{ include (print $root.Template.BasePath "/configmap-settings.yaml") $root | sha256sum }}
  checksum/secrets: {{ toJson (list $root.Values.secrets $root.Values.postgresql.postgresqlPassword) | sha256sum }}
  {{- with $own.annotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
labels:
  {{- include "autoopt.selectorLabels" (list $root (kebabcase (last .))) | nindent 2 }}
  {{- with $own.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* What the specs of all our pods have in common. (list root component) */}}
{{- define "autoopt.podSpec" -}}
{{- $root := first . -}}
{{- $own := get $root.Values (last .) -}}
securityContext:
  {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
volumes:
  - name: instance
    configMap:
      name: {{ include "autoopt.fullname" $root }}-instance
  {{- include "autoopt.volumes" . | nindent 2 }}
{{- end -}}

{{/* Volumes of our pods and of runs. (list root component) */}}
{{- define "autoopt.volumes" -}}
{{- $root := first . -}}
- name: dagster-home
  emptyDir: {}
- name: tmp
  emptyDir: {}
{{- if $root.Values.modules }}
- name: modules
  configMap:
    name: {{ include "autoopt.fullname" $root }}-modules
{{- end }}
{{- if $root.Values.artifactsVolume.enabled }}
- name: artifacts
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-artifacts" (include "autoopt.fullname" $root)) $root.Values.artifactsVolume.existingClaim }}
{{- end }}
{{- with (get $root.Values (last .)).volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* (list root component) */}}
{{- define "autoopt.volumeMounts" -}}
{{- $root := first . -}}
- name: dagster-home
  mountPath: {{ $root.Values.global.dagsterHome }}
- name: tmp
  mountPath: /tmp
{{- if $root.Values.modules }}
- name: modules
  mountPath: /etc/autoopt
  readOnly: true
{{- end }}
{{- if $root.Values.artifactsVolume.enabled }}
- name: artifacts
  mountPath: /artifacts
{{- end }}
{{- with (get $root.Values (last .)).volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What the containers of all our pods have in common. (list root component) */}}
{{- define "autoopt.container" -}}
{{- $root := first . -}}
image: {{ include "autoopt.image" $root | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
securityContext:
  {{- toYaml $root.Values.securityContext | nindent 2 }}
resources:
  {{- toYaml (get $root.Values (last .)).resources | nindent 2 }}
volumeMounts:
  {{- include "autoopt.volumeMounts" . | nindent 2 }}
  {{- range list "dagster.yaml" "workspace.yaml" }}
  - name: instance
    mountPath: {{ $root.Values.global.dagsterHome }}/{{ . }}
    subPath: {{ . }}
    readOnly: true
  {{- end }}
{{- end -}}

{{/* Answers once definitions are loaded. */}}
{{- define "autoopt.codeServerProbe" -}}
{{- if semverCompare ">=1.27-0" .Capabilities.KubeVersion.Version -}}
grpc: {port: 4000, service: DagsterApi}
{{- else -}}
tcpSocket: {port: 4000}
{{- end }}
timeoutSeconds: 5
{{- end -}}
