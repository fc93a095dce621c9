"""The official Python SDKs against the emulator where a device shows a certificate or is provisioned."""

import os
import tempfile
import unittest

from azure.iot.device import X509, IoTHubDeviceClient
from azure.iot.hub.models import CloudToDeviceMethod

import hub


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


if __name__ == "__main__":
    unittest.main(verbosity=2)
