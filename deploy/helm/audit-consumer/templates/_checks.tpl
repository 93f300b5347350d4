{{/* What values must not mean together. Their names and kinds are for values.schema.json. */}}

{{/* The bytes of a text such as 20Gi, 10GiB, 64M or 1024. */}}
{{- define "audit-consumer.bytes" -}}
{{- $text := . | toString | lower -}}
{{- $number := regexFind "^[0-9]+" $text | int64 -}}
{{- $unit := regexFind "[kmgt]" $text -}}
{{- $units := dict "k" 1024 "m" 1048576 "g" 1073741824 "t" 1099511627776 -}}
{{- mul $number (default 1 (get $units $unit)) -}}
{{- end -}}

{{- define "audit-consumer.checkValues" -}}
{{- if not .Values.kafka.brokers -}}
{{- fail "kafka.brokers is empty: name at least one broker as HOST:PORT" -}}
{{- end -}}
{{- if not .Values.database.existingSecret -}}
{{- fail "database.existingSecret is empty: name the Secret that holds the URL of PostgreSQL for a role with audit_writer, under database.urlKey" -}}
{{- end -}}
{{- if and .Values.migration.enabled (not .Values.migration.existingSecret) -}}
{{- fail "migration.existingSecret is empty: name the Secret that holds the URL of PostgreSQL for the role that owns the schema, under migration.urlKey, or set migration.enabled to false and run `audit-consumer migrate` yourself" -}}
{{- end -}}
{{- include "audit-consumer.checkKafka" .Values.kafka -}}
{{- range $where, $ca := dict "kafka.tls.ca" .Values.kafka.tls.ca "database.ca" .Values.database.ca -}}
{{- if and $ca.existingSecret $ca.existingConfigMap -}}
{{- fail (printf "%s names a Secret and a ConfigMap: choose one" $where) -}}
{{- end -}}
{{- end -}}
{{- if and (include "audit-consumer.hasProbePort" .) (eq (int64 .Values.http.port) (int64 .Values.http.probePort)) -}}
{{- fail "http.port and http.probePort are the same: metrics and probes need a port of their own" -}}
{{- end -}}
{{- if and .Values.otel.headers.existingSecret (not .Values.otel.endpoint) -}}
{{- fail "otel.headers is set, but otel.endpoint is empty: no spans would be sent" -}}
{{- end -}}
{{- if and .Values.otel.variables (not .Values.otel.endpoint) -}}
{{- fail "otel.variables is set, but otel.endpoint is empty: no spans would be sent" -}}
{{- end -}}
{{- if regexMatch "(?i)(password|secret|key\\.pem|jaas|token|oauthbearer\\.config)" (get .Values.settings "KAFKA_PROPERTIES" | default "") -}}
{{- fail "settings.KAFKA_PROPERTIES holds what looks like a secret, and pods show their variables: use kafka.sasl.existingSecret and kafka.tls.client.existingSecret" -}}
{{- end -}}
{{- include "audit-consumer.checkSpool" . -}}
{{- if .Values.autoscaling.enabled }}{{ include "audit-consumer.checkAutoscaling" . }}{{ end -}}
{{- end -}}

{{- define "audit-consumer.checkKafka" -}}
{{- range .topics -}}
{{- if and (hasPrefix "^" .) (gt (len $.topics) 1) -}}
{{- fail "kafka.topics: an expression that begins with ^ must be the only one" -}}
{{- end -}}
{{- end -}}
{{- $wantsSasl := hasPrefix "sasl_" .securityProtocol -}}
{{- if and $wantsSasl (not .sasl.mechanism) -}}
{{- fail (printf "kafka.securityProtocol is %s, but kafka.sasl.mechanism is empty" .securityProtocol) -}}
{{- end -}}
{{- if and .sasl.mechanism (not $wantsSasl) -}}
{{- fail (printf "kafka.sasl.mechanism is set, but kafka.securityProtocol is %s: use sasl_ssl or sasl_plaintext" .securityProtocol) -}}
{{- end -}}
{{- if eq .sasl.mechanism "OAUTHBEARER" -}}
{{- if and .sasl.existingSecret .sasl.serviceAccountToken.enabled -}}
{{- fail "kafka.sasl has an existingSecret and a serviceAccountToken: choose where the token comes from" -}}
{{- end -}}
{{- if not (or .sasl.existingSecret .sasl.serviceAccountToken.enabled) -}}
{{- fail "kafka.sasl.mechanism is OAUTHBEARER: name the Secret with the token in kafka.sasl.existingSecret, or enable kafka.sasl.serviceAccountToken" -}}
{{- end -}}
{{- if and .sasl.serviceAccountToken.enabled (not .sasl.serviceAccountToken.audience) -}}
{{- fail "kafka.sasl.serviceAccountToken.audience is empty: name the audience that the brokers accept" -}}
{{- end -}}
{{- else if .sasl.mechanism -}}
{{- if not (and .sasl.username .sasl.existingSecret) -}}
{{- fail (printf "kafka.sasl.mechanism is %s: set kafka.sasl.username, and kafka.sasl.existingSecret to the Secret with the password" .sasl.mechanism) -}}
{{- end -}}
{{- end -}}
{{- $hasTls := or .tls.ca.existingSecret .tls.ca.existingConfigMap .tls.client.existingSecret -}}
{{- if and $hasTls (not (has .securityProtocol (list "ssl" "sasl_ssl"))) -}}
{{- fail (printf "kafka.tls is set, but kafka.securityProtocol is %s: use ssl or sasl_ssl" .securityProtocol) -}}
{{- end -}}
{{- end -}}

{{- define "audit-consumer.checkSpool" -}}
{{- $settings := .Values.settings -}}
{{- if not (hasKey $settings "SPOOL_DIR") -}}
{{- $max := get $settings "SPOOL_MAX_BYTES" | default "10GiB" -}}
{{- $free := ternary (get $settings "SPOOL_MIN_FREE_BYTES") "2GiB" (hasKey $settings "SPOOL_MIN_FREE_BYTES") -}}
{{- if not (kindIs "string" $max) }}{{ $max = int64 $max }}{{ end -}}
{{- if not (kindIs "string" $free) }}{{ $free = int64 $free }}{{ end -}}
{{- $need := add (include "audit-consumer.bytes" $max | int64) (include "audit-consumer.bytes" $free | int64) -}}
{{- if lt (include "audit-consumer.bytes" .Values.persistence.size | int64) $need -}}
{{- fail (printf "persistence.size %s is too small: the spool may take SPOOL_MAX_BYTES (%v) and leaves SPOOL_MIN_FREE_BYTES (%v) free, and day files come on top" .Values.persistence.size $max $free) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "audit-consumer.checkAutoscaling" -}}
{{- with .Values.autoscaling -}}
{{- if gt (int64 .minReplicas) (int64 .maxReplicas) -}}
{{- fail "autoscaling.minReplicas is more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and (eq .trigger "prometheus") (not .prometheus.serverAddress) -}}
{{- fail "autoscaling.trigger is prometheus, but autoscaling.prometheus.serverAddress is empty" -}}
{{- end -}}
{{- if and (eq .trigger "kafka") (eq $.Values.kafka.sasl.mechanism "OAUTHBEARER") -}}
{{- fail "autoscaling.trigger is kafka: KEDA can't log in to Kafka with our OAUTHBEARER token; use the trigger prometheus" -}}
{{- end -}}
{{- end -}}
{{- end -}}
