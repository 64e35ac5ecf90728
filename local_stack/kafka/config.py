"""The two files a broker reads, as text: server.properties and log4j2.properties.

Both are written anew at every start, so that a change here reaches an old home. All paths in them
are relative, so that no path of a user has to be escaped: the JVM runs in the Kafka folder of the
home, the formatting tool in its staging folder.
"""

from __future__ import annotations

NODE_ID = 1
HOST = "127.0.0.1"
DATA_FOLDER = "data"
LOG_FOLDER = "log"
LOG_FILE = "server.log"
SERVER_PROPERTIES = "server.properties"
LOG4J_PROPERTIES = "log4j2.properties"

RETENTION_HOURS = 7 * 24
SEGMENT_BYTES = 64 * 1024 * 1024
DEFAULT_PARTITIONS = 8
INTERNAL_TOPIC_PARTITIONS = 4
# After a crash the controller waits this long for the dead incarnation before the new one may
# serve: it is most of a restart after kill -9. Kafka's own 9 s is meant for networks.
SESSION_TIMEOUT_MS = 3_000
HEARTBEAT_MS = 500
# Sized for a disk shared with everything else: a 64 MB segment needs 200 KB of index.
INDEX_BYTES = 1024 * 1024
# The broker allocates it at start, from the heap; Kafka's own 128 MB would be a quarter of it.
CLEANER_BUFFER_BYTES = 16 * 1024 * 1024

LOG_FILE_SIZE = "10MB"
LOG_FILES_KEPT = 3


def server_properties(port: int, controller_port: int) -> str:
    """The broker's and the controller's settings: one node, this machine only."""
    settings: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": NODE_ID,
        "controller.quorum.voters": f"{NODE_ID}@{HOST}:{controller_port}",
        "listeners": f"CLIENT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"CLIENT://{HOST}:{port}",
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "CLIENT",
        "controller.listener.names": "CONTROLLER",
        "broker.session.timeout.ms": SESSION_TIMEOUT_MS,
        "broker.heartbeat.interval.ms": HEARTBEAT_MS,
        "log.dirs": DATA_FOLDER,
        "log.message.timestamp.type": "LogAppendTime",
        "log.retention.hours": RETENTION_HOURS,
        "log.segment.bytes": SEGMENT_BYTES,
        "log.index.size.max.bytes": INDEX_BYTES,
        "log.cleaner.dedupe.buffer.size": CLEANER_BUFFER_BYTES,
        "num.partitions": DEFAULT_PARTITIONS,
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": INTERNAL_TOPIC_PARTITIONS,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": INTERNAL_TOPIC_PARTITIONS,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": INTERNAL_TOPIC_PARTITIONS,
        "group.initial.rebalance.delay.ms": 0,
    }
    return _properties(settings)


def log4j_properties() -> str:
    """Warnings, starts and stops into a rotating file; what kills a broker also on stderr."""
    settings: dict[str, object] = {
        "status": "error",
        # log4j would otherwise close the file before the broker has said that it stopped.
        "shutdownHook": "disable",
        "appender.file.type": "RollingFile",
        "appender.file.name": "file",
        "appender.file.fileName": f"{LOG_FOLDER}/{LOG_FILE}",
        "appender.file.filePattern": f"{LOG_FOLDER}/{LOG_FILE}.%i",
        "appender.file.layout.type": "PatternLayout",
        "appender.file.layout.pattern": "%d{ISO8601} %p %m (%c{1})%n",
        "appender.file.policies.type": "Policies",
        "appender.file.policies.size.type": "SizeBasedTriggeringPolicy",
        "appender.file.policies.size.size": LOG_FILE_SIZE,
        "appender.file.strategy.type": "DefaultRolloverStrategy",
        "appender.file.strategy.max": LOG_FILES_KEPT,
        "appender.stderr.type": "Console",
        "appender.stderr.name": "stderr",
        "appender.stderr.target": "SYSTEM_ERR",
        "appender.stderr.layout.type": "PatternLayout",
        "appender.stderr.layout.pattern": "%d{ISO8601} %p %m%n",
        "appender.stderr.filter.threshold.type": "ThresholdFilter",
        "appender.stderr.filter.threshold.level": "error",
        "rootLogger.level": "warn",
        "rootLogger.appenderRef.file.ref": "file",
        "rootLogger.appenderRef.stderr.ref": "stderr",
        "logger.server.name": "kafka.server.KafkaRaftServer",
        "logger.server.level": "info",
        "logger.version.name": "org.apache.kafka.common.utils.AppInfoParser",
        "logger.version.level": "info",
    }
    return _properties(settings)


def _properties(settings: dict[str, object]) -> str:
    lines = [f"{name}={value}" for name, value in settings.items()]
    return "\n".join(["# Written at every start: a change made here is lost.", *lines, ""])
