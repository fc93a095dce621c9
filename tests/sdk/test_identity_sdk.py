"""The official Python SDKs against the emulator where a device shows a certificate or is provisioned."""

import base64
import contextlib
import hmac
import json
import os
import tempfile
import unittest

from azure.iot.device import X509, IoTHubDeviceClient, ProvisioningDeviceClient
from azure.iot.hub.models import CloudToDeviceMethod
from msrest.exceptions import HttpOperationError

import hub


def group_key_of(registration_id):
    """The key of one device, derived from that of its group."""
    secret = base64.b64decode(hub.READY["dps"]["groupKey"])
    return base64.b64encode(hmac.digest(secret, registration_id.encode(), "sha256")).decode()


class IdentitySdk(unittest.TestCase):
    def setUp(self):
        self.registry = hub.registry()
        with open(hub.READY["caFile"], encoding="utf-8") as file:
            self.ca = file.read()

    def certify(self, device, query=""):
        """A certificate with its key, in files as the SDK wants them, and its thumbprints."""
        made = hub.control("POST", f"/certificates/{device}{query}")
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        certificate, key = (os.path.join(directory.name, name) for name in ("cert.pem", "key.pem"))
        for path, text in ((certificate, made["certificate"]), (key, made["privateKey"])):
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        return X509(certificate, key), made

    def connect(self, device, x509, **options):
        client = IoTHubDeviceClient.create_from_x509_certificate(
            x509, hub.READY["hubName"], device, server_verification_cert=self.ca, **options
        )
        self.addCleanup(client.shutdown)
        client.connect()
        return client

    def assert_works(self, device, x509, **options):
        client = self.connect(device, x509, **options)
        hub.answer_methods(client)
        client.patch_twin_reported_properties({"by": "certificate"})
        call = CloudToDeviceMethod(method_name="m", payload={"a": 1}, connect_timeout_in_seconds=10)
        answer = self.registry.invoke_device_method(device, call)
        self.assertEqual(answer.payload, {"echo": {"a": 1}, "name": "m"})

    def test_a_self_signed_certificate_is_known_by_its_thumbprint(self):
        x509, made = self.certify("py-self-signed", "?self-signed=true")
        self.registry.create_device_with_x509("py-self-signed", made["sha1Thumbprint"], made["sha256Thumbprint"], "enabled")
        self.addCleanup(self.registry.delete_device, "py-self-signed")
        self.assert_works("py-self-signed", x509)
        other, _ = self.certify("py-self-signed", "?self-signed=true")
        with self.assertRaises(Exception):
            self.connect("py-self-signed", other)

    def create_with_ca(self, device):
        self.registry.create_device_with_certificate_authority(device, "enabled")
        self.addCleanup(self.registry.delete_device, device)

    def test_a_certificate_of_a_registered_ca_names_its_device(self):
        self.create_with_ca("py-ca-signed")
        x509, _ = self.certify("py-ca-signed")
        self.assert_works("py-ca-signed", x509)
        another, _ = self.certify("py-another")
        with self.assertRaises(Exception):
            self.connect("py-ca-signed", another)

    @unittest.skipUnless(hub.READY["httpsPort"] == 443, "SKIPPED: WebSocket needs port 443, which this user may not open")
    def test_a_certificate_works_over_websocket(self):
        self.create_with_ca("py-ca-websocket")
        x509, _ = self.certify("py-ca-websocket")
        self.assert_works("py-ca-websocket", x509, websockets=True)

    def remove(self, device):
        """Deletes a device; it may have been provisioned twice."""
        with contextlib.suppress(HttpOperationError):
            self.registry.delete_device(device)

    def register(self, make, *means, scope=None, payload=None, **options):
        """What the provisioning service says to a device that registers with these means."""
        dps = hub.READY["dps"]
        host, id, *rest = dps["host"], *means
        client = make(host, id, scope or dps["idScope"], *rest, server_verification_cert=self.ca, **options)
        client.provisioning_payload = payload
        result = client.register()
        self.assertEqual(result.status, "assigned")
        self.assertEqual(result.registration_state.assigned_hub, hub.READY["hubName"])
        self.assertEqual(result.registration_state.device_id, id)
        self.addCleanup(self.remove, id)
        return result.registration_state

    def test_a_device_of_a_group_is_provisioned_by_its_derived_key(self):
        by_key = ProvisioningDeviceClient.create_from_symmetric_key
        key = group_key_of("py-group")
        self.register(by_key, "py-group", key, payload={"modelId": "dtmi:a:b;1"})
        client = hub.device(f"HostName={hub.READY['hubName']};DeviceId=py-group;SharedAccessKey={key}")
        self.addCleanup(client.shutdown)
        client.connect()
        client.patch_twin_reported_properties({"provisioned": True})
        with self.assertRaises(Exception):
            self.register(by_key, "py-other", key)
        with self.assertRaises(Exception):
            self.register(by_key, "py-group", key, scope="0ne99999999")

    def test_an_enrolment_of_its_own_gives_a_payload_and_may_be_disabled(self):
        enrolled = hub.control("PUT", "/dps/enrollments/py-serial", {"payload": {"welcome": True}})
        by_key = ProvisioningDeviceClient.create_from_symmetric_key
        means = by_key, "py-serial", enrolled["attestation"]["primaryKey"]
        state = self.register(*means)
        self.assertEqual(json.loads(state.response_payload), {"welcome": True})
        hub.control("PUT", "/dps/enrollments/py-serial", {"status": "disabled"})
        with self.assertRaises(Exception):
            self.register(*means)

    @unittest.skipUnless(hub.READY["httpsPort"] == 443, "SKIPPED: WebSocket needs port 443, which this user may not open")
    def test_a_device_is_provisioned_over_websocket(self):
        by_key = ProvisioningDeviceClient.create_from_symmetric_key
        self.register(by_key, "py-websocket", group_key_of("py-websocket"), websockets=True)

    def test_a_device_is_provisioned_by_a_certificate(self):
        x509, _ = self.certify("py-certified")
        make = lambda host, id, scope, x509, **options: ProvisioningDeviceClient.create_from_x509_certificate(
            provisioning_host=host, registration_id=id, id_scope=scope, x509=x509, **options
        )
        self.register(make, "py-certified", x509)
        self.assert_works("py-certified", x509)


if __name__ == "__main__":
    unittest.main(verbosity=2)
