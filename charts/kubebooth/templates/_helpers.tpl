{{/* Name of the chart, at most 63 characters. */}}
{{- define "kubebooth.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name that every object starts with; short enough for the suffixes and a pod's own suffix. */}}
{{- define "kubebooth.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "kubebooth.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "kubebooth.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels of every object; takes (list context component). */}}
{{- define "kubebooth.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "kubebooth.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: kubebooth
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- end }}

{{/* Labels that never change; takes (list context component). */}}
{{- define "kubebooth.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "kubebooth.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "kubebooth.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (printf "%s-operator" (include "kubebooth.fullname" .)) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Reference of an image; takes (list context image). A digest wins over a tag. */}}
{{- define "kubebooth.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end }}
{{- end }}

{{/* Namespaces in which sessions live, as a JSON list. */}}
{{- define "kubebooth.sessionNamespaces" -}}
{{- $names := default .Values.watchNamespaces .Values.sessionNamespaces -}}
{{- default (list "default") $names | uniq | toJson }}
{{- end }}

{{- define "kubebooth.storeName" -}}
{{ include "kubebooth.fullname" . }}-store
{{- end }}

{{/* Where sessions find the store, as JSON: endpoint, bucket, prefix, region, secret. */}}
{{- define "kubebooth.store" -}}
{{- if .Values.store.bundled.enabled -}}
{{- $endpoint := printf "http://%s.%s.svc:%d" (include "kubebooth.storeName" .) .Release.Namespace (int .Values.store.bundled.ports.s3) -}}
{{- dict "endpoint" $endpoint "bucket" .Values.store.bundled.bucket "prefix" "" "region" "" "secret" (default .Values.store.secretName .Values.store.bundled.existingSecret) | toJson }}
{{- else -}}
{{- $external := .Values.store.external -}}
{{- $secret := default .Values.store.secretName $external.existingSecret -}}
{{- dict "endpoint" $external.endpoint "bucket" $external.bucket "prefix" $external.prefix "region" $external.region "secret" $secret | toJson }}
{{- end }}
{{- end }}

{{/* Secret in the release's namespace from which the bundled store reads s3.json. */}}
{{- define "kubebooth.storeServerSecret" -}}
{{- default (printf "%s-config" (include "kubebooth.storeName" .)) .Values.store.bundled.existingSecret }}
{{- end }}
