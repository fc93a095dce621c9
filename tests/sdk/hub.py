"""The emulator under test, as the scripts see it: its ready file, its controls, both SDKs' clients.

The environment names the ready file (READY_FILE). Nothing of the SDKs is changed: the device SDK connects to
port 8883 of the hub's host name, the service SDK to the host and port of its connection string, and both trust
the emulator's CA the way their documentation says.
"""

import json
import os
import threading
import time

with open(os.environ["READY_FILE"], encoding="utf-8") as file:
    READY = json.load(file)

# `requests`, which the service SDK uses, reads this for each call.
os.environ["REQUESTS_CA_BUNDLE"] = READY["caFile"]

import requests  # noqa: E402  (after the environment is set)
from azure.iot.device import IoTHubDeviceClient, MethodResponse  # noqa: E402
from azure.iot.hub import IoTHubRegistryManager  # noqa: E402

CONTROL = f"https://{READY['hubName']}:{READY['httpsPort']}/emulator"


def control(method, path, body=None):
    """Calls the emulator's control interface; the parsed answer, if it has one."""
    answer = requests.request(method, CONTROL + path, json=body, timeout=10)
    answer.raise_for_status()
    return answer.json() if answer.content else None


def registry():
    """A client of the service SDK."""
    return IoTHubRegistryManager.from_connection_string(READY["serviceConnectionString"])


def device(connection_string, **options):
    """A client of the device SDK, not yet connected."""
    with open(READY["caFile"], encoding="utf-8") as file:
        ca = file.read()
    return IoTHubDeviceClient.create_from_connection_string(
        connection_string, server_verification_cert=ca, connection_retry_interval=1, **options
    )


def answer_methods(client):
    """Answers each method with status 200 and what was asked."""

    def answer(request):
        payload = {"echo": request.payload, "name": request.name}
        client.send_method_response(MethodResponse.create_from_method_request(request, 200, payload))

    client.on_method_request_received = answer


def wait_for(condition, what, seconds=30):
    """Waits until `condition()` is true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {seconds} s")
        time.sleep(0.05)


class Inbox:
    """Collects what a handler of the device SDK is called with."""

    def __init__(self):
        self._items = []
        self._changed = threading.Condition()

    def __call__(self, item):
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def take(self, seconds=10):
        """The oldest item; fails when none comes."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._items, seconds):
                raise AssertionError(f"nothing was received within {seconds} s")
            return self._items.pop(0)
