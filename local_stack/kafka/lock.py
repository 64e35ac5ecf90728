"""Makes `jars.lock.toml`: `python -m local_stack.kafka.lock` after a change of the versions below.

Data flow: Kafka's coordinate → jgo resolves what it needs → the log4j link is added → every jar is
fetched into a temporary folder and summed → the lock file. Review the difference before committing
it: from then on these sums are what every machine accepts.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from local_stack.kafka.jars import FETCH_TIMEOUT_S, LOCK_FILE, sha256_of

KAFKA_VERSION = "4.3.1"
KAFKA = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
# Kafka logs through SLF4J 1.7 and brings log4j-core, but not the link between the two. The link's
# version must be that of the log4j-core which Kafka brings.
LOG4J_VERSION = "2.25.4"
LOG4J_LINK = f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J_VERSION}"


def make_lock() -> str:
    """Resolve the coordinates and return the text of the lock file."""
    from jgo.maven import MavenContext

    with tempfile.TemporaryDirectory() as folder:
        context = MavenContext(repo_cache=Path(folder), timeout=FETCH_TIMEOUT_S)
        inputs, transitive = context.resolver.resolve([context.create_dependency(KAFKA)])
        # Not resolved together with Kafka: log4j's own dependency management would replace
        # Kafka's jars by the older ones that log4j is built against.
        link = context.create_dependency(LOG4J_LINK)
        lines = set()
        for dependency in (*inputs, *transitive, link):
            path = dependency.artifact.resolve()
            name = f"{dependency.groupId}:{dependency.artifactId}:{dependency.version}"
            size, digest = path.stat().st_size, sha256_of(path)
            lines.add(f'    {{ coordinate = "{name}", size_bytes = {size}, sha256 = "{digest}" }},')
    return "\n".join(
        [
            "# The jars of the local Kafka. Made by `python -m local_stack.kafka.lock`.",
            f'kafka_version = "{KAFKA_VERSION}"',
            "jars = [",
            *sorted(lines),
            "]",
            "",
        ]
    )


if __name__ == "__main__":
    LOCK_FILE.write_text(make_lock())
    print(f"wrote {LOCK_FILE.name}")
