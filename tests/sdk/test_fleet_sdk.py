"""The official Python service SDK against the emulator, for many devices at once: bulk operations, jobs, configurations."""

import datetime
import unittest

from azure.iot.hub import IoTHubConfigurationManager, IoTHubJobManager
from azure.iot.hub.models import CloudToDeviceMethod, QuerySpecification, Twin, TwinProperties
from azure.iot.hub.protocol.models import (
    AuthenticationMechanism,
    Configuration,
    ConfigurationContent,
    ConfigurationMetrics,
    ConfigurationQueriesTestInput,
    ExportImportDevice,
    JobRequest,
    SymmetricKey,
)
from msrest.exceptions import HttpOperationError

import hub

SERVICE = hub.READY["serviceConnectionString"]


class FleetSdk(unittest.TestCase):
    def setUp(self):
        self.registry = hub.registry()
        self.jobs = IoTHubJobManager.from_connection_string(SERVICE)
        self.configurations = IoTHubConfigurationManager.from_connection_string(SERVICE)

    def create(self, device, tags=None):
        identity = self.registry.create_device_with_sas(device, "", "", "enabled")
        self.addCleanup(self.registry.delete_device, device)
        if tags:
            self.registry.update_twin(device, Twin(tags=tags), '"*"')
        key = identity.authentication.symmetric_key.primary_key
        return f"HostName={hub.READY['hubName']};DeviceId={device};SharedAccessKey={key}"

    def until_ended(self, job_id):
        ended = ("completed", "failed", "cancelled")
        hub.wait_for(lambda: self.jobs.get_scheduled_job(job_id).status in ended, f"the end of {job_id}")
        return self.jobs.get_scheduled_job(job_id)

    def test_devices_are_created_and_deleted_in_bulk(self):
        key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
        keys = AuthenticationMechanism(type="sas", symmetric_key=SymmetricKey(primary_key=key, secondary_key=key))
        device = lambda id, mode: ExportImportDevice(id=id, import_mode=mode, status="enabled", authentication=keys)
        created = self.registry.bulk_create_or_update_devices([device("pybulk-1", "create"), device("pybulk-2", "create")])
        self.assertTrue(created.is_successful)
        self.assertEqual(self.registry.get_device("pybulk-2").authentication.symmetric_key.primary_key, key)

        mixed = self.registry.bulk_create_or_update_devices([device("pybulk-1", "create"), device("pybulk-3", "create")])
        self.assertFalse(mixed.is_successful)
        self.assertEqual([(error.device_id, error.error_code) for error in mixed.errors], [("pybulk-1", "DeviceAlreadyExists")])
        self.assertEqual(self.registry.get_device("pybulk-3").status, "enabled")

        gone = [device(f"pybulk-{n}", "delete") for n in (1, 2, 3)]
        self.assertTrue(self.registry.bulk_create_or_update_devices(gone).is_successful)
        with self.assertRaises(HttpOperationError):
            self.registry.get_device("pybulk-2")

    def test_a_job_calls_a_method(self):
        client = hub.device(self.create("pyjob-1", {"site": "pyjobs"}))
        self.addCleanup(client.shutdown)
        self.create("pyjob-2", {"site": "pyjobs"})
        client.connect()
        hub.answer_methods(client)
        call = CloudToDeviceMethod(method_name="firmwareUpdate", payload={"a": 1}, response_timeout_in_seconds=5)
        # No start time: now.
        request = JobRequest(
            job_id="py-method-job",
            type="scheduleDeviceMethod",
            cloud_to_device_method=call,
            query_condition="tags.site = 'pyjobs'",
            max_execution_time_in_seconds=60,
        )
        self.assertEqual(self.jobs.create_scheduled_job("py-method-job", request).job_id, "py-method-job")
        ended = self.until_ended("py-method-job")
        self.assertEqual((ended.status, ended.type), ("completed", "scheduleDeviceMethod"))
        counts = ended.device_job_statistics
        self.assertEqual((counts.device_count, counts.succeeded_count, counts.failed_count), (2, 1, 1))
        self.assertLessEqual(ended.start_time, ended.end_time)
        with self.assertRaises(HttpOperationError) as caught:
            self.jobs.create_scheduled_job("py-method-job", request)
        self.assertEqual(caught.exception.response.status_code, 409)

        query = QuerySpecification(query="SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'py-method-job'")
        rows = {row.device_id: row.additional_properties for row in self.registry.query_iot_hub(query).items}
        self.assertEqual(rows["pyjob-1"]["outcome"]["deviceMethodResponse"]["status"], 200)
        self.assertEqual(rows["pyjob-2"]["error"]["code"], "DeviceNotOnline")

    def test_a_job_changes_twins(self):
        self.create("pytwins-1")
        twin = Twin(etag="*", tags={"building": "43"}, properties=TwinProperties(desired={"interval": 120}))
        request = JobRequest(
            job_id="py-twin-job",
            type="scheduleUpdateTwin",
            update_twin=twin,
            query_condition="deviceId IN ['pytwins-1']",
            start_time=datetime.datetime.now(datetime.timezone.utc),
            max_execution_time_in_seconds=60,
        )
        self.jobs.create_scheduled_job("py-twin-job", request)
        self.assertEqual(self.until_ended("py-twin-job").device_job_statistics.succeeded_count, 1)
        changed = self.registry.get_twin("pytwins-1")
        self.assertEqual((changed.tags["building"], changed.properties.desired["interval"]), ("43", 120))

    def test_a_job_for_later_is_cancelled(self):
        later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
        request = JobRequest(
            job_id="py-later",
            type="scheduleUpdateTwin",
            update_twin=Twin(etag="*", tags={"never": True}),
            query_condition="*",
            start_time=later,
            max_execution_time_in_seconds=60,
        )
        self.jobs.create_scheduled_job("py-later", request)
        self.jobs.cancel_scheduled_job("py-later")
        self.assertEqual(self.until_ended("py-later").status, "cancelled")

    def test_a_configuration_comes_and_goes(self):
        self.create("pychiller", {"devicetype": "pychiller"})
        condition = "tags.devicetype = 'pychiller'"
        tested = self.configurations.test_configuration_queries(
            ConfigurationQueriesTestInput(target_condition=condition, custom_metric_queries={})
        )
        self.assertFalse(tested.target_condition_error)
        firmware = {"fwVersion": "2.8.5", "fwPackageURI": "https://x/y"}
        configuration = Configuration(
            id="pychillers",
            schema_version="1.0",
            content=ConfigurationContent(device_content={"properties.desired.firmware": firmware}),
            target_condition=condition,
            priority=20,
            metrics=ConfigurationMetrics(queries={"all": f"SELECT deviceId FROM devices WHERE {condition}"}),
        )
        created = self.configurations.create_configuration(configuration)
        self.assertTrue(created.etag)
        desired = lambda: self.registry.get_twin("pychiller").properties.desired
        hub.wait_for(lambda: desired().get("firmware") == firmware, "the configuration")
        applied = lambda: self.configurations.get_configuration("pychillers").system_metrics.results["appliedCount"]
        hub.wait_for(lambda: applied() == 1, "the metrics")
        self.assertEqual([one.id for one in self.configurations.get_configurations()], ["pychillers"])
        created.priority = 30
        updated = self.configurations.update_configuration(created, created.etag)
        self.assertEqual(updated.priority, 30)
        self.configurations.delete_configuration("pychillers", updated.etag)
        hub.wait_for(lambda: "firmware" not in desired(), "the withdrawal")


if __name__ == "__main__":
    unittest.main(verbosity=2)
