"""The official Python device SDK against the emulator; the service side is played by the service SDK."""

import unittest

from azure.iot.device import Message
from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties

import hub

ID = "pi-01"
CONNECTION_STRING = hub.READY["devices"][ID]


def invoke(name, payload, **timeouts):
    call = CloudToDeviceMethod(method_name=name, payload=payload, **timeouts)
    return hub.registry().invoke_device_method(ID, call)


def connections():
    return hub.control("GET", f"/devices/{ID}")["connections"]


class DeviceSdk(unittest.TestCase):
    def connect(self, **options):
        client = hub.device(CONNECTION_STRING, **options)
        self.addCleanup(client.shutdown)
        client.connect()
        return client

    def assert_methods_work(self, payload):
        answer = invoke("firmwareUpdate", payload, connect_timeout_in_seconds=30)
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.payload, {"echo": payload, "name": "firmwareUpdate"})

    def test_reads_the_twin_and_reports(self):
        client = self.connect()
        before = client.get_twin()
        self.assertGreaterEqual(before["desired"]["$version"], 1)
        client.patch_twin_reported_properties({"iothubDM": {"firmwareUpdate": {"status": "waiting", "error": "x"}}})
        client.patch_twin_reported_properties({"iothubDM": {"firmwareUpdate": {"status": "downloading", "error": None}}})
        after = client.get_twin()["reported"]
        self.assertEqual(after["iothubDM"], {"firmwareUpdate": {"status": "downloading"}})
        self.assertEqual(after["$version"], before["reported"]["$version"] + 2)
        history = hub.control("GET", f"/devices/{ID}/reported-history")
        statuses = [entry["patch"]["iothubDM"]["firmwareUpdate"]["status"] for entry in history[-2:]]
        self.assertEqual(statuses, ["waiting", "downloading"])

    def test_a_refused_patch_is_an_error(self):
        client = self.connect()
        hub.control("POST", "/fail-twin-patches?count=1&status=429")
        with self.assertRaises(Exception):
            client.patch_twin_reported_properties({"a": 1})
        client.patch_twin_reported_properties({"a": None})

    def test_receives_desired_changes(self):
        client = self.connect()
        inbox = hub.Inbox()
        client.on_twin_desired_properties_patch_received = inbox
        desired = {"firmware": {"fwVersion": "1.4.0"}}
        twin = hub.registry().update_twin(ID, Twin(properties=TwinProperties(desired=desired)), '"*"')
        patch = inbox.take()
        self.assertEqual(patch["firmware"], desired["firmware"])
        self.assertEqual(patch["$version"], twin.properties.desired["$version"])

    def test_answers_methods(self):
        client = self.connect()
        hub.answer_methods(client)
        for payload in ({"fwPackageUri": "https://x/y"}, "text", 5, [1, None], None):
            # A None payload is sent by the service SDK as an empty text.
            expected = "" if payload is None else payload
            answer = invoke("echo.method-1", payload)
            self.assertEqual(answer.payload, {"echo": expected, "name": "echo.method-1"})

    def test_more_than_nine_methods_have_hexadecimal_ids(self):
        client = self.connect()
        hub.answer_methods(client)
        for number in range(12):
            self.assert_methods_work({"number": number})

    def test_answers_methods_after_a_dropped_connection(self):
        client = self.connect()
        hub.answer_methods(client)
        self.assert_methods_work({"before": "drop"})
        inbox = hub.Inbox()
        client.on_twin_desired_properties_patch_received = inbox
        count = connections()
        self.assertTrue(hub.control("POST", f"/devices/{ID}/drop")["dropped"])
        hub.wait_for(lambda: connections() > count, "a new connection")
        # The SDK subscribes to nothing again: the hub must have kept the session.
        self.assert_methods_work({"after": "drop"})
        hub.registry().update_twin(ID, Twin(properties=TwinProperties(desired={"after": "drop"})), '"*"')
        # After a reconnect the SDK also makes a patch of its own out of the twin that it reads.
        hub.wait_for(lambda: inbox.take().get("after") == "drop", "the desired change")

    def test_answers_methods_after_token_renewal(self):
        # The SDK renews two minutes before the end: here after three seconds.
        client = self.connect(sastoken_ttl=123)
        hub.answer_methods(client)
        self.assert_methods_work({"before": "renewal"})
        count = connections()
        hub.wait_for(lambda: connections() > count, "a token renewal")
        self.assert_methods_work({"after": "renewal"})
        client.patch_twin_reported_properties({"renewed": True})

    def test_comes_back_after_an_outage(self):
        client = self.connect()
        hub.answer_methods(client)
        self.assert_methods_work({"before": "outage"})
        count = connections()
        hub.control("POST", "/outage?seconds=2")
        hub.wait_for(lambda: connections() > count, "a new connection")
        self.assert_methods_work({"after": "outage"})

    def test_sends_telemetry(self):
        client = self.connect()
        message = Message('{"temperature":21}', message_id="id-0", content_type="application/json", content_encoding="utf-8")
        message.custom_properties["k v"] = "a/b&c=d"
        client.send_message(message)
        kept = hub.control("GET", f"/devices/{ID}/telemetry")[-1]
        self.assertEqual(kept["body"], '{"temperature":21}')
        expected = {"$.mid": "id-0", "$.ct": "application/json", "$.ce": "utf-8", "k v": "a/b&c=d"}
        self.assertEqual({key: kept["properties"].get(key) for key in expected}, expected)

    def test_a_wrong_key_is_refused(self):
        host, device, _ = CONNECTION_STRING.split(";")
        client = hub.device(f"{host};{device};SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
        self.addCleanup(client.shutdown)
        with self.assertRaises(Exception):
            client.connect()
        self.assertGreaterEqual(hub.control("GET", f"/devices/{ID}")["refusals"], 1)

    @unittest.skipUnless(hub.READY["httpsPort"] == 443, "SKIPPED: WebSocket needs port 443, which this user may not open")
    def test_everything_works_over_websocket(self):
        client = self.connect(websockets=True)
        hub.answer_methods(client)
        client.patch_twin_reported_properties({"large": {f"k{n}": "x" * 4000 for n in range(7)}})
        self.assertEqual(len(client.get_twin()["reported"]["large"]), 7)
        self.assert_methods_work({"large": "y" * 100_000})
        client.patch_twin_reported_properties({"large": None})


if __name__ == "__main__":
    unittest.main(verbosity=2)
