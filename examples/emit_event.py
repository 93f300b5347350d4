#!/usr/bin/env python3
"""Emits one audit event from Python, and waits until Kafka has acknowledged it.

    pip install confluent-kafka
    KAFKA_BROKERS=localhost:19092 python3 emit_event.py ritual.query query alice

What matters, in a service as here:

* `acks=all` to a replicated topic: an acknowledged event survives the loss of a broker.
* `enable.idempotence`: librdkafka's own retries make no second record.
* Wait for the delivery. An event without an acknowledgement is not sent: keep it, and send *the same bytes* again.
  Its `audit_id` and `timestamp` are what it is known by, so a second one is a counted duplicate. Made anew with
  another id or time it would be another event.
* The `correlation_id` as the key keeps the events of one request in order.
"""

import json
import os
import sys
import uuid
from datetime import datetime, timezone

DELIVERY_TIMEOUT_SECONDS = 10


def event(operation, command, actor):
    return {
        "audit_id": str(uuid.uuid4()),
        "correlation_id": str(uuid.uuid4()),
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        "operation": operation,
        "command": command,
        "actor": actor,
        "status": "Success",
        "client_app": "emit_event.py",
        "metadata": {"pid": os.getpid()},
    }


def main(words):
    if len(words) != 3:
        sys.exit("usage: emit_event.py OPERATION COMMAND ACTOR")
    from confluent_kafka import Producer

    brokers = os.environ.get("KAFKA_BROKERS", "localhost:19092")
    topic = os.environ.get("EMIT_TOPIC", "forge.audit.query.executed")
    producer = Producer(
        {
            "bootstrap.servers": brokers,
            "client.id": "emit_event",
            "acks": "all",
            "enable.idempotence": True,
            "message.timeout.ms": DELIVERY_TIMEOUT_SECONDS * 1000,
        }
    )
    made = event(*words)
    payload = json.dumps(made, ensure_ascii=False)
    deliveries = []
    producer.produce(
        topic,
        key=made["correlation_id"],
        value=payload.encode("utf-8"),
        on_delivery=lambda error, message: deliveries.append((error, message)),
    )
    producer.flush(DELIVERY_TIMEOUT_SECONDS + 1)
    error, message = deliveries[0] if deliveries else ("no answer in time", None)
    if error is not None:
        sys.exit(f"{brokers} did not acknowledge it, send it again: {error}\n{payload}")
    print(f"{topic}[{message.partition()}]@{message.offset()}")


if __name__ == "__main__":
    main(sys.argv[1:])
