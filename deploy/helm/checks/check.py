"""Checks the chart as it is rendered; called by deploy/helm/check.

1. Helm (the newest and the oldest supported) lints and renders each ci/*-values.yaml, both the same.
2. Kubernetes' own schemas, strictly, oldest and newest supported; custom resources against checks/schemas.
3. Pins (pins.py): what must hold for the rendered objects, such as that no probe depends on PostgreSQL.
4. No drift: rules and dashboards are those of deploy/, variables those of src/config/settings.rs, the version that of
   Cargo.toml, README.md's table that of values.yaml and values.schema.json.
5. Wrong values (wrong-values.yaml) are refused with a message that helps.
"""

import base64
import concurrent.futures
import gzip
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile

import jsonschema
import yaml

import pins

ROOT = pathlib.Path(__file__).resolve().parents[3]
CHART = ROOT / "deploy/helm/audit-consumer"
CHECKS = ROOT / "deploy/helm/checks"
KUBERNETES = ["1.30", "1.37"]
CUSTOM_KINDS = ["ServiceMonitor", "PrometheusRule", "ScaledObject", "TriggerAuthentication"]
TABLE_START, TABLE_END = "<!-- values: written by deploy/helm/check --write -->\n", "<!-- end of values -->"
# A release is one Secret, which Kubernetes takes up to 1 MiB.
RELEASE_MAX_LEN_BYTES = 1_000_000

# Variables of the daemon that the chart does not set, and why.
NOT_SET = {
    "DATABASE_URL": "a secret; the chart mounts it as a file",
    "KAFKA_SASL_PASSWORD": "a secret; the chart mounts it as a file",
}
# Variables that the chart sets and settings.rs does not have yet. Take off what has come.
COMING = set()
# What the chart sets for itself.
CHARTS_OWN = {"POD_NAME", "POD_NAMESPACE"}

problems = []


def complain(text):
    problems.append(text)


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


def said(result):
    """What a command said, without Helm's remarks that files/ are links."""
    lines = (result.stdout + result.stderr).splitlines()
    return "\n".join(line for line in lines if "found symbolic link" not in line)


# --- render -----------------------------------------------------------------------------------------------------

def helm_lint(helm, values):
    result = run(helm, "lint", "--strict", CHART, "-f", values)
    if result.returncode != 0:
        complain(f"{helm.name} lint --strict {values.name}: {said(result)}")


def helm_template(helm, *values):
    files = [argument for file in values for argument in ("-f", file)]
    return run(helm, "template", "rel", CHART, "--namespace", "audit", *files)


def render(helms, values, folder):
    """The objects that `values` give, the same with each Helm; None if they can't be rendered."""
    rendered = []
    for helm in helms:
        helm_lint(helm, values)
        result = helm_template(helm, values)
        if result.returncode != 0:
            complain(f"{helm.name} template {values.name}: {said(result)}")
            return None
        rendered.append([document for document in yaml.safe_load_all(result.stdout) if document])
        (folder / f"{values.name}").write_text(result.stdout)
    for helm, objects in zip(helms[1:], rendered[1:]):
        if objects != rendered[0]:
            complain(f"{values.name}: {helm.name} and {helms[0].name} render different objects")
    return rendered[0]


def check_kubernetes(validate, version, files):
    result = run(validate, "--strict", "-k", version, *files)
    lines = (result.stdout + result.stderr).splitlines()
    wrong = [line for line in lines if not line.startswith("INFO")]
    wrong = [line for line in wrong if not any(f"schema for kind {kind} " in line for kind in CUSTOM_KINDS)]
    for line in wrong:
        complain(f"Kubernetes {version}: {line}")
    if result.returncode != 0 and not wrong:
        complain(f"Kubernetes {version}: {validate.name} ended with {result.returncode}")


def check_custom(name, objects, seen):
    for item in objects:
        if item["kind"] in CUSTOM_KINDS:
            seen.add(item["kind"])
            schema = json.loads((CHECKS / f"schemas/{item['kind']}.json").read_text())
            for error in jsonschema.Draft202012Validator(schema).iter_errors(item):
                complain(f"{name}: {item['kind']} at {error.json_path}: {error.message}")


# --- drift ------------------------------------------------------------------------------------------------------

def check_packaged(helm, folder):
    """`helm package` follows the links: the package has the very files of deploy/."""
    result = run(helm, "package", CHART, "-d", folder)
    if result.returncode != 0:
        complain(f"{helm.name} package: {said(result)}")
        return
    package = next(folder.glob("*.tgz"))
    with tarfile.open(package) as archive:
        packaged = {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isfile()}
    package.unlink()
    sources = {"files/rules.yaml": ROOT / "deploy/prometheus/rules.yaml"}
    for dashboard in (ROOT / "deploy/grafana/dashboards").iterdir():
        sources[f"files/dashboards/{dashboard.name}"] = dashboard
    for name, source in sources.items():
        if packaged.get(f"audit-consumer/{name}") != source.read_bytes():
            complain(f"{helm.name} package: {name} is not {source.relative_to(ROOT)}")


def check_observability(objects):
    """Rules and dashboards of ci/full-values.yaml are those of deploy/."""
    prefix = "https://runbooks.example/audit-consumer/docs/"
    text = (ROOT / "deploy/prometheus/rules.yaml").read_text().replace("runbook_url: docs/", f"runbook_url: {prefix}")
    rules = [item["spec"] for item in objects if item["kind"] == "PrometheusRule"]
    if rules != [yaml.safe_load(text)]:
        complain("the PrometheusRule is not deploy/prometheus/rules.yaml")
    shown = {}
    for item in objects:
        if item["kind"] == "ConfigMap":
            shown.update(item["data"])
    sources = (ROOT / "deploy/grafana/dashboards").glob("*.json")
    wanted = {f"audit-consumer-{file.name}": json.loads(file.read_text()) for file in sources}
    if {name: json.loads(text) for name, text in shown.items()} != wanted:
        complain("the ConfigMaps are not the dashboards of deploy/grafana/dashboards")


def check_variables(renders, schema):
    source = (ROOT / "src/config/settings.rs").read_text()
    of_daemon = set(re.findall(r'\benv = "([A-Z0-9_]+)"', source))
    settable = set(schema["properties"]["settings"]["properties"])
    rendered = set()
    for objects in renders.values():
        for _, container in pins.containers(objects):
            rendered |= {variable["name"] for variable in container.get("env", [])}
    rendered = {name for name in rendered if not name.startswith("OTEL_")} - CHARTS_OWN
    known = settable | rendered
    for name in sorted(of_daemon - known - set(NOT_SET)):
        complain(f"{name} of src/config/settings.rs can't be set: add it to values.schema.json, or to NOT_SET")
    for name in sorted(known - of_daemon - COMING):
        complain(f"{name} is set by the chart, but is no variable of src/config/settings.rs")
    for name in sorted(set(NOT_SET) & known):
        complain(f"{name} is set by the chart: {NOT_SET[name]}")
    for name in sorted(settable & (rendered - pins.variables_of_settings(CHART))):
        complain(f"{name} has a value of its own and is in settings, too")
    come = sorted(COMING & of_daemon)
    if come:
        print(f"have come, take them off COMING in deploy/helm/checks/check.py: {', '.join(come)}")


def check_version():
    cargo = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    if chart["appVersion"] != cargo:
        complain(f"Chart.yaml: appVersion {chart['appVersion']} is not Cargo.toml's version {cargo}")


def check_size(text):
    """About what Helm stores of a release: the chart's files and the rendered text."""
    files = [file for file in CHART.rglob("*") if file.is_file()]
    files += (CHART / "files/dashboards").resolve().iterdir()
    whole = text.encode() + b"".join(file.read_bytes() for file in files)
    # Base64 by Helm; Kubernetes counts what it holds, once decoded from its own.
    len_bytes = len(base64.b64encode(gzip.compress(whole)))
    if len_bytes > RELEASE_MAX_LEN_BYTES:
        complain(f"a release of ci/full-values.yaml takes about {len_bytes} bytes of a Secret, which may have 1 MiB")


# --- values -----------------------------------------------------------------------------------------------------

def leaves(schema, values, path=""):
    """(path, default, schema) for each value; a map without fixed names is one."""
    for name, part in schema["properties"].items():
        here = f"{path}{name}"
        if "description" not in part:
            complain(f"values.schema.json: {here} has no description")
        if here == "global":
            continue
        if name not in values:
            complain(f"values.yaml: {here} of the schema is missing")
        elif "properties" in part and name not in ("settings", "resources"):
            if part.get("additionalProperties") is not False:
                complain(f"values.schema.json: {here} takes unknown names")
            yield from leaves(part, values[name], f"{here}.")
        else:
            yield here, values[name], part
    for name in values:
        if name not in schema["properties"]:
            complain(f"values.schema.json: {path}{name} of values.yaml is missing")


def table(schema, values):
    lines = ["| value | default | meaning |", "| --- | --- | --- |"]
    for path, default, part in leaves(schema, values):
        meaning = part.get("description", "")
        words = [str(word) for word in part.get("enum", []) if word != ""]
        if words:
            meaning += f" ({', '.join(f'`{word}`' for word in words)})"
        shown = json.dumps(default) if default != "" else ""
        lines.append(f"| `{path}` | {f'`{shown}`' if shown else ''} | {meaning} |".replace("  ", " "))
    return "\n".join(lines) + "\n"


def check_values(schema, wants_write):
    for name, part in schema["properties"]["settings"]["properties"].items():
        if "description" not in part:
            complain(f"values.schema.json: settings.{name} has no description")
    readme = CHART / "README.md"
    text = readme.read_text()
    before, rest = text.split(TABLE_START)
    _, after = rest.split(TABLE_END)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    new = f"{before}{TABLE_START}\n{table(schema, values)}\n{TABLE_END}{after}"
    if wants_write:
        readme.write_text(new)
    elif new != text:
        complain("README.md: its table is not that of values.yaml and values.schema.json; deploy/helm/check --write")


def check_refused(helm, case, folder):
    """A wrong value, on top of ci/minimal-values.yaml, is refused, and the message has all the parts."""
    file = folder / f"wrong-{helm.name}-{re.sub(r'[^a-z]+', '-', case['name'].lower())}.yaml"
    file.write_text(yaml.safe_dump(case["values"]))
    result = helm_template(helm, CHART / "ci/minimal-values.yaml", file)
    message = said(result)
    if result.returncode == 0:
        complain(f"{helm.name}: {case['name']} is not refused")
        return
    for part in case["says"]:
        if part not in message:
            complain(f"{helm.name}: {case['name']}: the message lacks '{part}': {message}")


def report():
    """Ends the process if there are problems."""
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        sys.exit(1)


def main():
    tools = [pathlib.Path(argument) for argument in sys.argv[1:4]]
    helms, validate = tools[:2], tools[2]
    wants_write = "--write" in sys.argv[4:]
    schema = json.loads((CHART / "values.schema.json").read_text())
    wrong = yaml.safe_load((CHECKS / "wrong-values.yaml").read_text())
    check_values(schema, wants_write)
    check_version()
    value_files = sorted((CHART / "ci").glob("*-values.yaml"))
    with tempfile.TemporaryDirectory() as name, concurrent.futures.ThreadPoolExecutor(2) as pool:
        folder = pathlib.Path(name)
        all_objects = pool.map(lambda values: render(helms, values, folder), value_files)
        renders = {values.name: objects for values, objects in zip(value_files, all_objects) if objects}
        if len(renders) < len(value_files):
            report()
        texts = [folder / name for name in renders]
        waiting = [pool.submit(check_kubernetes, validate, version, texts) for version in KUBERNETES]
        waiting += [pool.submit(check_refused, helm, case, folder) for helm in helms for case in wrong]
        for done in waiting:
            done.result()
        for helm in helms:
            check_packaged(helm, folder)
        seen = set()
        for values, objects in renders.items():
            check_custom(values, objects, seen)
            for problem in pins.broken(objects, ROOT):
                complain(f"{values}: {problem}")
        for kind in set(CUSTOM_KINDS) - seen:
            complain(f"no ci/*-values.yaml renders a {kind}")
        if "full-values.yaml" in renders:
            check_observability(renders["full-values.yaml"])
            check_size((folder / "full-values.yaml").read_text())
            for problem in pins.broken_settings(renders["full-values.yaml"]):
                complain(f"full-values.yaml: {problem}")
        check_variables(renders, schema)
    report()
    print(f"{len(renders)} sets of values on Kubernetes {' and '.join(KUBERNETES)}, {len(wrong)} wrong ones refused")


main()
