{{/* What pods are made of. Secrets are files below /etc/audit-consumer, so that a new one is read without a restart;
no environment variable holds one, but for OTEL_EXPORTER_OTLP_HEADERS, for which OpenTelemetry knows no file. */}}

{{- define "audit-consumer.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.podSecurity.userId }}
runAsUser: {{ int64 . }}
{{- end }}
{{- with .Values.podSecurity.groupId }}
runAsGroup: {{ int64 . }}
fsGroup: {{ int64 . }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "audit-consumer.containerSecurityContext" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop:
    - ALL
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "audit-consumer.imagePullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Whether metrics and probes have a port of their own: they stay plain where the status page has TLS. */}}
{{- define "audit-consumer.hasProbePort" -}}
{{- if or .Values.http.separateProbes .Values.http.tls.existingSecret -}}true{{- end -}}
{{- end -}}

{{- define "audit-consumer.probePortName" -}}
{{- if include "audit-consumer.hasProbePort" . -}}probes{{- else -}}http{{- end -}}
{{- end -}}

{{/* A value as the daemon reads it: YAML takes on and off for true and false, and Helm large numbers for floats. */}}
{{- define "audit-consumer.settingValue" -}}
{{- if kindIs "bool" .value -}}
{{- if eq .name "ASSUME_UTC" -}}{{ .value }}{{- else -}}{{ ternary "on" "off" .value }}{{- end -}}
{{- else if kindIs "string" .value -}}
{{ .value }}
{{- else -}}
{{ int64 .value }}
{{- end -}}
{{- end -}}

{{/* --- environment ------------------------------------------------------------------------------------------ */}}

{{- define "audit-consumer.databaseEnv" -}}
- name: DATABASE_URL_FILE
  value: /etc/audit-consumer/database/url
{{- with .root.Values.database.sslMode }}
- name: PGSSLMODE
  value: {{ . | quote }}
{{- end }}
{{- if or .root.Values.database.ca.existingSecret .root.Values.database.ca.existingConfigMap }}
- name: PGSSLROOTCERT
  value: /etc/audit-consumer/database/ca.crt
{{- end }}
{{- if .client.existingSecret }}
- name: PGSSLCERT
  value: /etc/audit-consumer/database/tls.crt
- name: PGSSLKEY
  value: /etc/audit-consumer/database/tls.key
{{- end }}
{{- end -}}

{{- define "audit-consumer.kafkaEnv" -}}
{{- with .Values.kafka -}}
- name: KAFKA_BROKERS
  value: {{ join "," .brokers | quote }}
- name: KAFKA_TOPICS
  value: {{ join "," .topics | quote }}
- name: KAFKA_GROUP_ID
  value: {{ .groupId | quote }}
- name: KAFKA_SECURITY_PROTOCOL
  value: {{ .securityProtocol }}
{{- if .sasl.mechanism }}
- name: KAFKA_SASL_MECHANISM
  value: {{ .sasl.mechanism }}
{{- if eq .sasl.mechanism "OAUTHBEARER" }}
- name: KAFKA_SASL_TOKEN_FILE
  value: /etc/audit-consumer/kafka/token
{{- else }}
- name: KAFKA_SASL_USERNAME
  value: {{ .sasl.username | quote }}
- name: KAFKA_SASL_PASSWORD_FILE
  value: /etc/audit-consumer/kafka/password
{{- end }}
{{- end }}
{{- if or .tls.ca.existingSecret .tls.ca.existingConfigMap }}
- name: KAFKA_SSL_CA_FILE
  value: /etc/audit-consumer/kafka/ca.crt
{{- end }}
{{- if .tls.client.existingSecret }}
- name: KAFKA_SSL_CERTIFICATE_FILE
  value: /etc/audit-consumer/kafka/tls.crt
- name: KAFKA_SSL_KEY_FILE
  value: /etc/audit-consumer/kafka/tls.key
{{- if .tls.client.passwordKey }}
- name: KAFKA_SSL_KEY_PASSWORD_FILE
  value: /etc/audit-consumer/kafka/key-password
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "audit-consumer.httpEnv" -}}
- name: HTTP_ADDRESS
  value: {{ printf "%s:%d" .Values.http.address (int64 .Values.http.port) | quote }}
{{- if include "audit-consumer.hasProbePort" . }}
- name: HTTP_PROBE_ADDRESS
  value: {{ printf "%s:%d" .Values.http.address (int64 .Values.http.probePort) | quote }}
{{- end }}
{{- if .Values.http.tls.existingSecret }}
- name: HTTP_TLS_CERTIFICATE_FILE
  value: /etc/audit-consumer/http/tls.crt
- name: HTTP_TLS_KEY_FILE
  value: /etc/audit-consumer/http/tls.key
{{- end }}
{{- if .Values.http.token.existingSecret }}
- name: HTTP_TOKEN_FILE
  value: /etc/audit-consumer/http/token
{{- end }}
{{- end -}}

{{- define "audit-consumer.settingsEnv" -}}
{{- range $name, $value := .Values.settings }}
- name: {{ $name }}
  value: {{ include "audit-consumer.settingValue" (dict "name" $name "value" $value) | quote }}
{{- end }}
{{- end -}}

{{- define "audit-consumer.otelEnv" -}}
{{- with .Values.otel }}
{{- if .endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
{{- if .headers.existingSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ .headers.existingSecret | quote }}
      key: {{ .headers.key | quote }}
{{- end }}
{{- if not (hasKey .variables "OTEL_RESOURCE_ATTRIBUTES") }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: "service.instance.id=$(POD_NAME),k8s.pod.name=$(POD_NAME),k8s.namespace.name=$(POD_NAMESPACE)"
{{- end }}
{{- range $name, $value := .variables }}
- name: {{ $name }}
  value: {{ include "audit-consumer.settingValue" (dict "name" $name "value" $value) | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* --- files ------------------------------------------------------------------------------------------------- */}}

{{/* An item of a projected volume: dict "secret" or "configMap", then "key" and "path" of each of "items". */}}
{{- define "audit-consumer.projected" -}}
- {{ .kind }}:
    name: {{ .name | quote }}
    items:
      {{- range .items }}
      - key: {{ .key | quote }}
        path: {{ .path }}
      {{- end }}
{{- end -}}

{{- define "audit-consumer.projectedCa" -}}
{{- $items := list (dict "key" .ca.key "path" .path) -}}
{{- if .ca.existingSecret }}
{{ include "audit-consumer.projected" (dict "kind" "secret" "name" .ca.existingSecret "items" $items) }}
{{- else if .ca.existingConfigMap }}
{{ include "audit-consumer.projected" (dict "kind" "configMap" "name" .ca.existingConfigMap "items" $items) }}
{{- end }}
{{- end -}}

{{- define "audit-consumer.projectedPair" -}}
{{- if .pair.existingSecret }}
{{- $items := list (dict "key" .pair.certificateKey "path" (printf "%s/tls.crt" .folder)) (dict "key" .pair.privateKeyKey "path" (printf "%s/tls.key" .folder)) -}}
{{- if get .pair "passwordKey" }}
{{- $items = append $items (dict "key" .pair.passwordKey "path" (printf "%s/key-password" .folder)) -}}
{{- end }}
{{ include "audit-consumer.projected" (dict "kind" "secret" "name" .pair.existingSecret "items" $items) }}
{{- end }}
{{- end -}}

{{- define "audit-consumer.databaseFiles" -}}
{{ include "audit-consumer.projected" (dict "kind" "secret" "name" .existingSecret "items" (list (dict "key" .urlKey "path" "database/url"))) }}
{{- include "audit-consumer.projectedCa" (dict "ca" .root.Values.database.ca "path" "database/ca.crt") }}
{{- include "audit-consumer.projectedPair" (dict "pair" .client "folder" "database") }}
{{- end -}}

{{- define "audit-consumer.kafkaFiles" -}}
{{- with .Values.kafka }}
{{- if and .sasl.mechanism (ne .sasl.mechanism "OAUTHBEARER") }}
{{ include "audit-consumer.projected" (dict "kind" "secret" "name" .sasl.existingSecret "items" (list (dict "key" .sasl.passwordKey "path" "kafka/password"))) }}
{{- else if and .sasl.mechanism .sasl.serviceAccountToken.enabled }}
- serviceAccountToken:
    audience: {{ .sasl.serviceAccountToken.audience | quote }}
    expirationSeconds: {{ int64 .sasl.serviceAccountToken.expirationSeconds }}
    path: kafka/token
{{- else if .sasl.mechanism }}
{{ include "audit-consumer.projected" (dict "kind" "secret" "name" .sasl.existingSecret "items" (list (dict "key" .sasl.tokenKey "path" "kafka/token"))) }}
{{- end }}
{{- include "audit-consumer.projectedCa" (dict "ca" .tls.ca "path" "kafka/ca.crt") }}
{{- include "audit-consumer.projectedPair" (dict "pair" .tls.client "folder" "kafka") }}
{{- end }}
{{- end -}}

{{- define "audit-consumer.httpFiles" -}}
{{- include "audit-consumer.projectedPair" (dict "pair" .Values.http.tls "folder" "http") }}
{{- with .Values.http.token }}
{{- if .existingSecret }}
{{ include "audit-consumer.projected" (dict "kind" "secret" "name" .existingSecret "items" (list (dict "key" .tokenKey "path" "http/token"))) }}
{{- end }}
{{- end }}
{{- end -}}
