"""The forwarder: ships the feeds to what is configured, each sink in its own order and at its own pace."""
