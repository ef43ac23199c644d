{{- define "polywand.selector" -}}
app.kubernetes.io/name: polywand
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "polywand.name" -}}
{{ printf "%s-polywand" .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}
