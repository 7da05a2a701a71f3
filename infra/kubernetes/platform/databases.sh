#!/bin/sh
# Runs once, in an empty database server: the user of MLflow, and its two databases. Both have to
# exist before `mlflow server --app-name basic-auth` starts; that user owns them and nothing else.
set -eu
psql --set ON_ERROR_STOP=1 --set password="$MLFLOW_PASSWORD" <<'SQL'
CREATE ROLE mlflow LOGIN PASSWORD :'password' NOSUPERUSER NOCREATEDB NOCREATEROLE;
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
REVOKE CONNECT ON DATABASE mlflow, mlflow_auth FROM PUBLIC;
SQL
