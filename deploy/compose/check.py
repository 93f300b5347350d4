"""check.py CONFIG DIR: looks at what `docker compose config --format json` made of the example (CONFIG), and lays the
files that Prometheus would see below DIR. Run by deploy/compose/check, with a Python that has ruamel.yaml."""

import json
import pathlib
import re
import shutil
import sys

from ruamel.yaml import YAML

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = "audit-consumer:local"
# Grafana's names of a plugin that has two.
ALIASES = {"grafana-postgresql-datasource": "postgres"}

problems = []


def complain(text):
    problems.append(text)


def mounts(service):
    """The files and folders of this project that a service sees: where it sees them, and where they are."""
    binds = [volume for volume in service.get("volumes", []) if volume["type"] == "bind"]
    return {bind["target"]: pathlib.Path(bind["source"]) for bind in binds}


def yaml(path):
    return YAML(typ="safe").load(path.read_text())


def check_services(services):
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    for name, service in services.items():
        for target, source in mounts(service).items():
            if not source.exists():
                complain(f"{name} mounts {source}, which is not there, at {target}")
        for port in service.get("ports", []):
            if port.get("host_ip") != "127.0.0.1":
                complain(f"{name} publishes port {port['target']} to others than this machine")
        tag = service["image"].rpartition(":")[2]
        if tag in ("latest", service["image"]):
            complain(f"{name} has an image without a version: {service['image']}")
        if service["image"] == OURS:
            for setting in set(service.get("environment", {})) - documented:
                complain(f"{name} sets {setting}, which README.md does not know")


def check_prometheus(services, folder):
    seen = mounts(services["prometheus"])
    for target, source in seen.items():
        copy = folder / target.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    config = yaml(seen["/etc/prometheus/prometheus.yml"])
    targets = [
        (scrape["job_name"], target)
        for scrape in config["scrape_configs"]
        for group in scrape["static_configs"]
        for target in group["targets"]
    ]
    if not any("audit-consumer" in job for job, _ in targets):
        complain("no scrape job has the name that the rules go by: it must contain audit-consumer")
    for job, target in targets:
        host, _, port = target.partition(":")
        if services.get(host, {}).get("image") != OURS or port != "8080":
            complain(f"job {job} scrapes {target}, where no audit-consumer listens")
    rules = seen.get("/etc/prometheus/rules.yaml")
    if rules != ROOT / "deploy/prometheus/rules.yaml" or config["rule_files"] != ["rules.yaml"]:
        complain("Prometheus does not load deploy/prometheus/rules.yaml")


def data_sources_asked():
    """What the dashboards ask for: types by variables, uids that are fixed."""
    types, uids = set(), set()

    def walk(value):
        if isinstance(value, dict):
            source = value.get("datasource")
            if isinstance(source, dict) and not source["uid"].startswith(("${", "-- ")):
                uids.add(source["uid"])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        walk(dashboard)
        types |= {v["query"] for v in dashboard["templating"]["list"] if v["type"] == "datasource"}
    return types, uids


def check_grafana(services):
    grafana = services["grafana"]
    seen = mounts(grafana)
    provisioning = seen["/etc/grafana/provisioning"]
    provided = yaml(provisioning / "datasources/audit-consumer.yaml")["datasources"]
    types, uids = data_sources_asked()
    if not types:
        complain("the dashboards ask for no data source at all")
    for missing in types - {ALIASES.get(source["type"], source["type"]) for source in provided}:
        complain(f"dashboards ask for a data source of type {missing}; none is provisioned")
    own_uids = [source["uid"] for source in provided]
    for missing in uids - set(own_uids):
        complain(f"dashboards ask for the data source {missing}; it is not provisioned")
    if len(set(own_uids)) != len(own_uids) or len({source["name"] for source in provided}) != len(provided):
        complain("two data sources have one uid or name")
    if [source["type"] for source in provided if source.get("isDefault")] != ["prometheus"]:
        complain("Prometheus is not the one default data source")
    for path in sorted(provisioning.rglob("*.yaml")):
        for name in re.findall(r"^[^#\n]*\$([A-Z_]+)", path.read_text(), re.MULTILINE):
            if name not in grafana["environment"]:
                complain(f"{path.name} asks for ${name}, which Grafana's environment has not")
    for provider in yaml(provisioning / "dashboards/audit-consumer.yaml")["providers"]:
        if seen.get(provider["options"]["path"]) != ROOT / "deploy/grafana/dashboards":
            complain(f"{provider['options']['path']} does not hold the dashboards")
    home = pathlib.Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    if not (seen.get(str(home.parent), ROOT) / home.name).is_file():
        complain(f"Grafana's home, {home}, is not there")


def stop_at_problems():
    for problem in problems:
        print(f"compose: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)


def main():
    services = json.loads(pathlib.Path(sys.argv[1]).read_text())["services"]
    check_services(services)
    # What is mounted is read from here on.
    stop_at_problems()
    check_prometheus(services, pathlib.Path(sys.argv[2]))
    check_grafana(services)
    stop_at_problems()


main()
