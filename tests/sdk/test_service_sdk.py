"""The official Python service SDK against the emulator."""

import threading
import time
import unittest

from azure.iot.hub.models import CloudToDeviceMethod, QuerySpecification, Twin, TwinProperties
from msrest.exceptions import HttpOperationError

import hub

KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


class ServiceSdk(unittest.TestCase):
    def setUp(self):
        self.registry = hub.registry()

    def create(self, device):
        self.addCleanup(self.remove, device)
        return self.registry.create_device_with_sas(device, "", "", "enabled")

    def remove(self, device):
        try:
            self.registry.delete_device(device)
        except HttpOperationError:
            pass

    def assert_refused(self, status, told, action):
        with self.assertRaises(Exception) as caught:
            action()
        error = caught.exception
        self.assertEqual(error.response.status_code, status, error)
        if told:
            self.assertIn(str(told), error.response.text)
            self.assertTrue(error.response.headers["iothub-errorcode"])

    def test_devices_are_created_read_changed_and_deleted(self):
        created = self.create("registry-1")
        self.assertEqual(created.device_id, "registry-1")
        self.assertGreater(len(created.authentication.symmetric_key.primary_key), 40)
        self.assertEqual(created.connection_state, "Disconnected")
        self.assert_refused(409, 409001, lambda: self.create("registry-1"))

        updated = self.registry.update_device_with_sas("registry-1", created.etag, KEY, KEY, "disabled", status_reason="lost")
        self.assertEqual((updated.status, updated.status_reason), ("disabled", "lost"))
        self.assertEqual(updated.authentication.symmetric_key.primary_key, KEY)
        stale = lambda: self.registry.update_device_with_sas("registry-1", created.etag, KEY, KEY, "enabled")
        self.assert_refused(412, 412001, stale)

        self.assertEqual(self.registry.get_device("registry-1").etag, updated.etag)
        self.registry.delete_device("registry-1", updated.etag)
        self.assert_refused(404, "DeviceNotFound", lambda: self.registry.get_device("registry-1"))

    def test_devices_are_listed_and_counted(self):
        for name in ("list-1", "list-2", "list-3"):
            self.create(name)
        names = [device.device_id for device in self.registry.get_devices()]
        self.assertLessEqual({"list-1", "list-2", "list-3"}, set(names))
        self.assertEqual(len(self.registry.get_devices(2)), 2)
        statistics = self.registry.get_device_registry_statistics()
        self.assertEqual(statistics.total_device_count, len(names))
        self.assertEqual(self.registry.get_service_statistics().connected_device_count, 0)

    def test_an_odd_device_id_survives_the_path(self):
        name = "a:b@c.d%2B(e)"
        self.create(name)
        self.assertEqual(self.registry.get_twin(name).device_id, name)

    def test_self_signed_devices_keep_their_thumbprints(self):
        self.addCleanup(self.remove, "x509-1")
        created = self.registry.create_device_with_x509("x509-1", "A" * 40, "b" * 64, "enabled")
        self.assertEqual(created.authentication.type, "selfSigned")
        self.assertEqual(created.authentication.x509_thumbprint.secondary_thumbprint, "b" * 64)

    def test_twins_are_merged_and_replaced_under_their_etag(self):
        self.create("twin-1")
        twin = self.registry.get_twin("twin-1")
        self.assertEqual(twin.etag, "AAAAAAAAAAE=")
        patch = Twin(tags={"site": "lab", "row": 3}, properties=TwinProperties(desired={"fw": {"v": "1"}}))
        patched = self.registry.update_twin("twin-1", patch, twin.etag)
        self.assertEqual(patched.tags, {"site": "lab", "row": 3})
        self.assertEqual(patched.properties.desired["fw"], {"v": "1"})
        self.assertEqual(patched.properties.desired["$version"], 2)
        self.assertEqual(patched.properties.desired["$metadata"]["fw"]["v"]["$lastUpdatedVersion"], 2)
        self.assert_refused(412, 412001, lambda: self.registry.update_twin("twin-1", patch, twin.etag))

        whole = Twin(tags={"only": True}, properties=TwinProperties(desired={"new": 1}))
        replaced = self.registry.replace_twin("twin-1", whole, patched.etag)
        self.assertEqual(replaced.tags, {"only": True})
        self.assertNotIn("fw", replaced.properties.desired)
        self.assertEqual(replaced.properties.desired["$version"], 3)

        bad = Twin(tags={"a.b": 1})
        self.assert_refused(400, 400004, lambda: self.registry.update_twin("twin-1", bad, '"*"'))
        self.assert_refused(404, "DeviceNotFound", lambda: self.registry.get_twin("nobody"))

    def test_methods_are_answered_or_fail_as_documented(self):
        identity = self.create("method-1")
        call = CloudToDeviceMethod(method_name="m", payload={"a": 1}, response_timeout_in_seconds=5)
        invoke = lambda: self.registry.invoke_device_method("method-1", call)
        self.assert_refused(404, 404103, invoke)
        self.assert_refused(404, "DeviceNotFound", lambda: self.registry.invoke_device_method("nobody", call))
        too_short = CloudToDeviceMethod(method_name="m", response_timeout_in_seconds=1)
        self.assert_refused(400, 400004, lambda: self.registry.invoke_device_method("method-1", too_short))

        client = hub.device(
            f"HostName={hub.READY['hubName']};DeviceId=method-1;"
            f"SharedAccessKey={identity.authentication.symmetric_key.primary_key}"
        )
        self.addCleanup(client.shutdown)
        client.connect()
        # Connected, but not listening to methods yet.
        self.assert_refused(404, 404103, invoke)

        inbox = hub.Inbox()
        client.on_method_request_received = inbox
        started = time.monotonic()
        self.assert_refused(504, 504101, invoke)
        self.assertGreaterEqual(time.monotonic() - started, 4.9)
        self.assertEqual(inbox.take().payload, {"a": 1})

        hub.answer_methods(client)
        answer = invoke()
        self.assertEqual((answer.status, answer.payload), (200, {"echo": {"a": 1}, "name": "m"}))

    def test_a_method_waits_for_the_device_to_connect(self):
        identity = self.create("late-1")
        key = identity.authentication.symmetric_key.primary_key
        client = hub.device(f"HostName={hub.READY['hubName']};DeviceId=late-1;SharedAccessKey={key}")
        self.addCleanup(client.shutdown)
        answers = []
        call = CloudToDeviceMethod(method_name="m", payload=1, connect_timeout_in_seconds=20)
        caller = threading.Thread(
            target=lambda: answers.append(self.registry.invoke_device_method("late-1", call)), daemon=True
        )
        caller.start()
        hub.answer_methods(client)
        client.connect()
        caller.join(20)
        self.assertEqual([answer.status for answer in answers], [200])

    def test_queries_select_project_group_and_page(self):
        for name, site in (("q-1", "lab"), ("q-2", "lab"), ("q-3", "roof")):
            self.create(name)
            self.registry.update_twin(name, Twin(tags={"site": site}), '"*"')
        ask = lambda text, **more: self.registry.query_iot_hub(QuerySpecification(query=text), **more)

        twins = ask("SELECT * FROM devices WHERE tags.site = 'lab'").items
        self.assertEqual([twin.device_id for twin in twins], ["q-1", "q-2"])
        self.assertEqual(twins[0].tags, {"site": "lab"})

        # The SDK reads every row as a Twin; what it does not know is in additional_properties.
        rows = ask("SELECT tags.site AS place, COUNT() AS n FROM devices WHERE IS_DEFINED(tags.site) GROUP BY tags.site")
        counted = {row.additional_properties["place"]: row.additional_properties["n"] for row in rows.items}
        self.assertEqual(counted, {"lab": 2, "roof": 1})

        page = ask("SELECT * FROM devices WHERE STARTSWITH(deviceId, 'q-')", max_item_count=2)
        self.assertEqual(len(page.items), 2)
        rest = ask(
            "SELECT * FROM devices WHERE STARTSWITH(deviceId, 'q-')",
            continuation_token=page.continuation_token,
            max_item_count=2,
        )
        self.assertEqual([twin.device_id for twin in rest.items], ["q-3"])
        self.assertIsNone(rest.continuation_token)
        self.assert_refused(400, 400004, lambda: ask("SELECT * FROM devices WHERE"))

    def test_a_wrong_key_is_unauthorised(self):
        host = hub.READY["serviceConnectionString"].split(";")[0]
        stranger = hub.IoTHubRegistryManager.from_connection_string(
            f"{host};SharedAccessKeyName=iothubowner;SharedAccessKey={KEY}"
        )
        self.assert_refused(401, None, lambda: stranger.get_twin("any"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
