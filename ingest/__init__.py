"""From the topic to a batch of events.

Read decode.py (a record becomes Accepted or Quarantined), then consumer.py (poll, project, commit).
"""
