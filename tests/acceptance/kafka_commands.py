"""Stands in for those of Kafka's commands that Maven's server jars do not have: the same arguments, the same facts."""

from __future__ import annotations

import argparse
import sys

from kafka import KafkaAdminClient


def main() -> None:
    """Print what the brokers say, as the command of this name would."""
    name = sys.argv[1]
    parser = argparse.ArgumentParser(name)
    parser.add_argument("--bootstrap-server", required=True)
    if name == "kafka-consumer-groups":
        parser.add_argument("--describe", action="store_true", required=True)
        parser.add_argument("--members", action="store_true", required=True)
        parser.add_argument("--group", required=True)
    given = parser.parse_args(sys.argv[2:])
    admin = KafkaAdminClient(bootstrap_servers=given.bootstrap_server)
    if name == "kafka-consumer-groups":
        for member in admin.describe_groups([given.group])[given.group]["members"]:
            print(given.group, member["member_id"], member["client_host"], member["client_id"])
    else:
        print(len(admin.describe_cluster()["brokers"]), "brokers")
    admin.close()


if __name__ == "__main__":
    main()
