{{/* Names and labels. */}}

{{- define "audit-consumer.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 42 characters: a StatefulSet's pods carry it in a label with a hash of 10 behind it, and dashboards and the
migration a name of ours. */}}
{{- define "audit-consumer.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 42 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "audit-consumer.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 42 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 42 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What all our pods have, the migration's and the test's too. */}}
{{- define "audit-consumer.instanceLabels" -}}
app.kubernetes.io/name: {{ include "audit-consumer.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* What only the daemon's pods have. */}}
{{- define "audit-consumer.selectorLabels" -}}
{{ include "audit-consumer.instanceLabels" . }}
app.kubernetes.io/component: daemon
{{- end -}}

{{- define "audit-consumer.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "audit-consumer.instanceLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: audit-consumer
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "audit-consumer.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "audit-consumer.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "audit-consumer.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The scrape job. Alerts on `up` go by a job that contains audit-consumer. */}}
{{- define "audit-consumer.job" -}}
{{- $fullname := include "audit-consumer.fullname" . -}}
{{- if contains "audit-consumer" $fullname -}}{{ $fullname }}{{- else -}}{{ printf "%s-audit-consumer" $fullname }}{{- end -}}
{{- end -}}
