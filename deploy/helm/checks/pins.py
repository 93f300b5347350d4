"""What must hold for the rendered objects."""

import pathlib
import re

SECRETS_DIR = "/etc/audit-consumer/"
STRICT = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def of_kind(objects, kind):
    return [item for item in objects if item["kind"] == kind]


def pods(objects):
    """(component, labels, spec) of each pod that the objects make."""
    for item in objects:
        if item["kind"] == "Pod":
            template = item
        elif item["kind"] in ("StatefulSet", "Job"):
            template = item["spec"]["template"]
        else:
            continue
        labels = template["metadata"]["labels"]
        yield labels["app.kubernetes.io/component"], labels, template["spec"]


def containers(objects):
    for component, _, spec in pods(objects):
        for container in spec.get("initContainers", []) + spec["containers"]:
            yield component, container


def environment(container):
    return {variable["name"]: variable for variable in container.get("env", [])}


def variables_of_settings(chart: pathlib.Path):
    """Names that ci/*-values.yaml and values.yaml put under settings."""
    names = set()
    for file in [chart / "values.yaml", *(chart / "ci").glob("*-values.yaml")]:
        block = re.search(r"^settings:\n((?: +.*\n)+)", file.read_text(), re.M)
        names |= set(re.findall(r"^  ([A-Z_]+):", block.group(1), re.M)) if block else set()
    return names


def is_selected(selector, labels):
    return all(labels.get(key) == value for key, value in selector.items())


def broken_pods(objects):
    for component, container in containers(objects):
        context = container.get("securityContext", {})
        for key, value in STRICT.items():
            if context.get(key) != value:
                yield f"{component}/{container['name']}: securityContext.{key} is {context.get(key)}, not {value}"
        if context.get("privileged"):
            yield f"{component}/{container['name']} is privileged"
        for variable in container.get("env", []):
            name = variable["name"]
            if "secretKeyRef" in variable.get("valueFrom", {}) and name != "OTEL_EXPORTER_OTLP_HEADERS":
                yield f"{component}: {name} takes a Secret into the environment, not from a file"
        if "envFrom" in container:
            yield f"{component}/{container['name']} has envFrom: its variables are not checked"
        names = [variable["name"] for variable in container.get("env", [])]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{component}: {name} is set twice"
    for component, _, spec in pods(objects):
        context = spec["securityContext"]
        wanted = {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                  "seccompProfile": {"type": "RuntimeDefault"}}
        for key, value in wanted.items():
            if context.get(key) != value:
                yield f"{component}: the pod's securityContext.{key} is {context.get(key)}, not {value}"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{component}: a token for Kubernetes is mounted, and nothing needs one"
        if spec.get("enableServiceLinks") is not False:
            yield f"{component}: variables of services are not off"
        yield from broken_files(component, spec)


def broken_files(component, spec):
    """Each file that a variable names is mounted, and each that is mounted is named by one."""
    mounted = set()
    for volume in spec["volumes"]:
        for source in volume.get("projected", {}).get("sources", []):
            for part in source.values():
                mounted |= {item["path"] for item in part.get("items", [part])}
    variables = environment(spec["containers"][0]).values()
    values = [variable.get("value", "") for variable in variables]
    named = {value.removeprefix(SECRETS_DIR) for value in values if value.startswith(SECRETS_DIR)}
    for path in sorted(named ^ mounted):
        yield f"{component}: {SECRETS_DIR}{path} is {'not mounted' if path in named else 'named by no variable'}"


def broken_daemon(objects, root):
    [stateful] = of_kind(objects, "StatefulSet")
    spec, pod = stateful["spec"], stateful["spec"]["template"]["spec"]
    container = pod["containers"][0]
    variables = environment(container)
    if spec["podManagementPolicy"] != "Parallel":
        yield "pods start one after the other"
    if spec.get("persistentVolumeClaimRetentionPolicy") != {"whenDeleted": "Retain", "whenScaled": "Retain"}:
        yield "volumes are deleted with their pods: records that Kafka has deleted may be in them"
    claims = [claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    if claims != ["logs"] or mounts.get("logs") != variables["LOG_DIR"].get("value"):
        yield "the one volume is not LOG_DIR"
    if variables["KAFKA_INSTANCE_ID"].get("valueFrom") != {"fieldRef": {"fieldPath": "metadata.name"}}:
        yield "KAFKA_INSTANCE_ID is not the pod's name"
    if ("replicas" in spec) == bool(of_kind(objects, "ScaledObject")):
        yield "replicas must be set if and only if nothing scales"
    deadline_ms = int(variables.get("SHUTDOWN_DEADLINE_MS", {}).get("value", 10_000))
    if pod["terminationGracePeriodSeconds"] * 1000 < deadline_ms + 5_000:
        yield f"the grace period is {pod['terminationGracePeriodSeconds']} s, the daemon's own deadline {deadline_ms} ms"
    if "topologySpreadConstraints" not in pod:
        yield "pods are not spread"
    yield from broken_probes(container, (root / "src/http.rs").read_text())
    for component, other in containers(objects):
        if component != "daemon" and "KAFKA_INSTANCE_ID" in environment(other):
            yield f"{component} would take the place of a member of the group"


def broken_probes(container, http_source):
    routes = set(re.findall(r'\.route\("(/[a-z]*)"', http_source))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    has_tls = "HTTP_TLS_CERTIFICATE_FILE" in environment(container)
    # Of these, /livez never depends on PostgreSQL or Kafka, and /readyz answers 200 in an outage.
    paths = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    for probe, path in paths.items():
        get = container[probe].get("httpGet", {})
        if get.get("path") != path:
            yield f"{probe} asks {get.get('path')}, not {path}"
        if get.get("path") not in routes:
            yield f"{probe} asks {get.get('path')}, which src/http.rs does not serve"
        if get.get("port") not in ports:
            yield f"{probe} asks the port {get.get('port')}, which the container does not have"
        if has_tls and get.get("port") != "probes":
            yield f"{probe} asks the port with TLS"
    startup = container["startupProbe"]
    if startup["periodSeconds"] * startup["failureThreshold"] < 600:
        yield "the start may take less than 10 minutes, and a large spool takes long to check"
    # The daemon itself counts as dead after 60 s without a poll; a probe must not be much more eager.
    liveness = container["livenessProbe"]
    if liveness["periodSeconds"] * liveness["failureThreshold"] < 60:
        yield "the liveness probe is too eager"


def broken_around(objects):
    [stateful] = of_kind(objects, "StatefulSet")
    [service] = of_kind(objects, "Service")
    if service["spec"].get("clusterIP") != "None" or stateful["spec"]["serviceName"] != service["metadata"]["name"]:
        yield "the StatefulSet has no headless Service"
    selectors = [("Service", service["spec"]["selector"])]
    selectors += [("PodDisruptionBudget", item["spec"]["selector"]["matchLabels"])
                  for item in of_kind(objects, "PodDisruptionBudget")]
    selectors.append(("StatefulSet", stateful["spec"]["selector"]["matchLabels"]))
    for kind, selector in selectors:
        chosen = sorted(component for component, labels, _ in pods(objects) if is_selected(selector, labels))
        if chosen != ["daemon"]:
            yield f"{kind} selects {chosen}, not the daemon alone"
    if not of_kind(objects, "PodDisruptionBudget"):
        yield "there is no PodDisruptionBudget"
    for policy in of_kind(objects, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]["matchLabels"]
        chosen = sorted(component for component, labels, _ in pods(objects) if is_selected(selector, labels))
        is_hook = "helm.sh/hook" in policy["metadata"].get("annotations", {})
        if chosen != (["migration"] if is_hook else ["check", "daemon", "migration"]):
            yield f"the NetworkPolicy {policy['metadata']['name']} selects {chosen}"
    for monitor in of_kind(objects, "ServiceMonitor"):
        if not is_selected(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"]):
            yield "the ServiceMonitor does not select the Service"
        for endpoint in monitor["spec"]["endpoints"]:
            if endpoint["port"] not in [port["name"] for port in service["spec"]["ports"]]:
                yield f"the ServiceMonitor asks the port {endpoint['port']}, which the Service does not have"
            jobs = [rule["replacement"] for rule in endpoint["relabelings"] if rule["targetLabel"] == "job"]
            if not any("audit-consumer" in job for job in jobs):
                yield f"the scrape job {jobs} does not contain audit-consumer, by which alerts go"
    for scaled in of_kind(objects, "ScaledObject"):
        target = scaled["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) != ("StatefulSet", stateful["metadata"]["name"]):
            yield "the ScaledObject scales something else"
    for item in of_kind(objects, "Secret"):
        yield f"the Secret {item['metadata']['name']} is made by the chart: credentials would be in its values"
    for item in objects:
        if item["metadata"].get("namespace") != "audit":
            yield f"{item['kind']} {item['metadata']['name']} is not in the release's namespace"


def broken_migration(objects):
    [job] = of_kind(objects, "Job")
    hooks = job["metadata"]["annotations"].get("helm.sh/hook")
    if hooks != "pre-install,pre-upgrade":
        yield f"the migration runs at {hooks}"
    pod = job["spec"]["template"]["spec"]
    if pod["containers"][0]["args"] != ["migrate"]:
        yield "the migration does not migrate"
    if "serviceAccountName" in pod:
        yield "the migration needs a service account, which is not there before the first installation"
    names = {part["name"] for source in pod["volumes"][0]["projected"]["sources"] for part in source.values()}
    if "audit-database-owner" not in names or "audit-database" in names:
        yield f"the migration logs in by {sorted(names)}, not as the owner of the schema"


def broken(objects, root):
    """Each pin that does not hold, as a text."""
    yield from broken_pods(objects)
    yield from broken_daemon(objects, root)
    yield from broken_around(objects)
    yield from broken_migration(objects)


def broken_settings(objects):
    """Numbers, on and off of ci/full-values.yaml come to the daemon as it reads them."""
    [stateful] = of_kind(objects, "StatefulSet")
    variables = environment(stateful["spec"]["template"]["spec"]["containers"][0])
    wanted = {"SPOOL_MAX_BYTES": "107374182400", "SPOOL_MIN_FREE_BYTES": "5GiB", "LANES": "4", "PURVIEW_LOG": "off",
              "TRUST_LOG": "on", "ASSUME_UTC": "true", "LOG_FORMAT": "json", "OTEL_TRACES_SAMPLER_ARG": "0.1"}
    for name, value in wanted.items():
        if variables.get(name, {}).get("value") != value:
            yield f"{name} is {variables.get(name)}, not {value}"
