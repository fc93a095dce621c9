"""A back end as the classic firmware update tutorial has it, with the official service SDK: calls the direct method
with JSON in a string, prints the answer, polls the twin each 500 ms and prints each new status, and at the end asks
which devices have the update.

Arguments: device id, image URL. The environment gives the service connection string (CONNECTION_STRING)."""

import json
import os
import sys
import time

from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod, QuerySpecification

device, uri = sys.argv[1:]
registry = IoTHubRegistryManager.from_connection_string(os.environ["CONNECTION_STRING"])
payload = json.dumps({"fwPackageUri": uri})
call = CloudToDeviceMethod(method_name="firmwareUpdate", payload=payload, response_timeout_in_seconds=30)
answer = registry.invoke_device_method(device, call)
print("answer", answer.status, answer.payload["message"], flush=True)

shown, end = None, time.monotonic() + 60
while shown not in ("applyComplete", "applyFailed", "downloadfailed"):
    if time.monotonic() > end:
        sys.exit("the update did not end within a minute")
    time.sleep(0.5)
    section = registry.get_twin(device).properties.reported.get("iothubDM", {}).get("firmwareUpdate", {})
    if section.get("status") != shown:
        shown = section.get("status")
        print("status", shown, flush=True)

query = "SELECT deviceId FROM devices WHERE properties.reported.iothubDM.firmwareUpdate.status = 'applyComplete'"
for twin in registry.query_iot_hub(QuerySpecification(query=query)).items:
    print("complete", twin.device_id, flush=True)
