// The official Node.js service SDK against the emulator, for many devices at once: bulk operations, jobs, configurations.

'use strict';

const assert = require('node:assert/strict');
const test = require('node:test');

const hub = require('./hub');

const untilEnded = async (jobId) => {
    let job;
    await hub.waitFor(async () => {
        job = (await hub.jobs.getJob(jobId)).jobStatus;
        return ['completed', 'failed', 'cancelled'].includes(job.status);
    }, `the end of ${jobId}`);
    return job;
};

const records = (jobId, more = '') =>
    hub.everyRow(hub.registry.createQuery(`SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '${jobId}'${more}`));

test('devices are added, changed and removed in bulk', async (t) => {
    const ids = ['bulk-1', 'bulk-2', 'bulk-3'];
    const devices = ids.map((deviceId) => ({ deviceId, status: 'enabled' }));
    t.after(() => Promise.all(ids.map((id) => hub.registry.delete(id).catch(() => {}))));
    const { responseBody: added } = await hub.registry.addDevices(devices);
    assert.equal(added.isSuccessful, true);
    assert.deepEqual(added.errors, []);
    const { responseBody: first } = await hub.registry.get('bulk-1');
    assert.ok(first.authentication.symmetricKey.primaryKey.length > 40);

    // One that exists: the others are added all the same, and the call as a whole has failed.
    await assert.rejects(hub.registry.addDevices([{ deviceId: 'bulk-1' }, { deviceId: 'bulk-4' }]), { name: 'ArgumentError' });
    ids.push('bulk-4');
    assert.equal((await hub.registry.get('bulk-4')).responseBody.deviceId, 'bulk-4');

    const disabled = ids.map((deviceId) => ({ deviceId, status: 'disabled' }));
    assert.equal((await hub.registry.updateDevices(disabled, true)).responseBody.isSuccessful, true);
    assert.equal((await hub.registry.get('bulk-2')).responseBody.status, 'disabled');
    await assert.rejects(hub.registry.updateDevices([{ ...disabled[0], etag: first.etag }], false), { name: 'ArgumentError' });

    const gone = ids.map((deviceId) => ({ deviceId }));
    assert.equal((await hub.registry.removeDevices(gone, true)).responseBody.isSuccessful, true);
    await assert.rejects(hub.registry.get('bulk-3'), { name: 'DeviceNotFoundError' });
});

test('a job calls a method on each device that its condition selects', async (t) => {
    for (const id of ['job-1', 'job-2', 'job-3']) {
        const connectionString = await hub.newDevice(t, id);
        await hub.registry.updateTwin(id, { tags: { site: 'jobs' } }, '*');
        if (id === 'job-3') continue; // stays offline
        const client = await hub.connect(t, connectionString);
        hub.answerMethods(client, 'firmwareUpdate');
        await hub.subscribed(id, 'methods');
    }
    const method = { methodName: 'firmwareUpdate', payload: { fwPackageUri: 'https://x/y' }, responseTimeoutInSeconds: 5 };
    const { jobStatus } = await hub.jobs.scheduleDeviceMethod('method-job', "tags.site = 'jobs'", method, new Date(), 60);
    assert.equal(jobStatus.jobId, 'method-job');
    assert.equal(jobStatus.type, 'scheduleDeviceMethod');

    const ended = await untilEnded('method-job');
    assert.equal(ended.status, 'completed');
    assert.equal(ended.queryCondition, "tags.site = 'jobs'");
    assert.equal(ended.cloudToDeviceMethod.methodName, 'firmwareUpdate');
    const { deviceCount, succeededCount, failedCount, runningCount, pendingCount } = ended.deviceJobStatistics;
    assert.deepEqual([deviceCount, succeededCount, failedCount, runningCount, pendingCount], [3, 2, 1, 0, 0]);

    const rows = await records('method-job');
    const byDevice = Object.fromEntries(rows.map((row) => [row.deviceId, row]));
    assert.deepEqual(Object.keys(byDevice).sort(), ['job-1', 'job-2', 'job-3']);
    const { status, payload } = byDevice['job-1'].outcome.deviceMethodResponse;
    assert.deepEqual({ status, payload }, { status: 200, payload: { echo: method.payload, name: 'firmwareUpdate' } });
    assert.equal(byDevice['job-3'].status, 'failed');
    assert.equal(byDevice['job-3'].error.code, 'DeviceNotOnline');
    const failed = await records('method-job', " AND devices.jobs.status = 'failed'");
    assert.deepEqual(failed.map((row) => row.deviceId), ['job-3']);

    const again = hub.jobs.scheduleDeviceMethod('method-job', '*', method, new Date(), 60);
    await assert.rejects(again, { name: 'DeviceAlreadyExistsError' });
    await assert.rejects(hub.jobs.getJob('nothing'), /Not found/);
});

test('a job changes twins', async (t) => {
    for (const id of ['twins-1', 'twins-2', 'twins-3']) await hub.newDevice(t, id);
    const change = { etag: '*', tags: { building: '43' }, properties: { desired: { telemetryInterval: 120 } } };
    await hub.jobs.scheduleTwinUpdate('twin-job', "deviceId IN ['twins-1', 'twins-2']", change, new Date(), 60);
    const ended = await untilEnded('twin-job');
    assert.equal(ended.status, 'completed');
    assert.equal(ended.type, 'scheduleUpdateTwin');
    assert.equal(ended.deviceJobStatistics.succeededCount, 2);
    for (const [id, interval] of [['twins-1', 120], ['twins-2', 120], ['twins-3', undefined]]) {
        const { responseBody: twin } = await hub.registry.getTwin(id);
        assert.equal(twin.properties.desired.telemetryInterval, interval);
    }
});

test('jobs for later are listed in pages and cancelled', async () => {
    const later = new Date(Date.now() + 3600_000);
    for (const id of ['later-1', 'later-2', 'later-3']) {
        await hub.jobs.scheduleTwinUpdate(id, '*', { etag: '*', tags: { never: true } }, later, 60);
    }
    const { jobStatus: job } = await hub.jobs.getJob('later-1');
    assert.ok(['queued', 'scheduled'].includes(job.status), job.status);
    assert.equal(Date.parse(job.startTime), later.getTime());

    const paged = hub.jobs.createQuery('scheduleUpdateTwin', job.status, 2);
    const { result: page } = await paged.next();
    assert.equal(page.length, 2);
    assert.equal(paged.hasMoreResults, true);
    const listed = [...page, ...(await paged.next(paged.continuationToken)).result];
    assert.deepEqual(listed.map((listed) => listed.jobId).sort(), ['later-1', 'later-2', 'later-3']);

    for (const { jobId } of listed) {
        await hub.jobs.cancelJob(jobId);
        assert.equal((await untilEnded(jobId)).status, 'cancelled');
    }
});

test('a configuration reaches the devices of its condition and leaves them again', async (t) => {
    const client = await hub.connect(t, await hub.newDevice(t, 'chiller-1'));
    await hub.newDevice(t, 'chiller-2');
    await hub.registry.updateTwin('chiller-2', { tags: { devicetype: 'chiller' } }, '*');
    const twin = await hub.twinOf(client);
    const received = [];
    twin.on('properties.desired', (patch) => received.push(patch));
    await hub.subscribed('chiller-1', 'desired-changes');

    const firmware = { fwVersion: '2.8.5', fwPackageURI: 'https://x/y', fwPackageCheckValue: '' };
    const current = "SELECT deviceId FROM devices WHERE properties.reported.firmware.fwUpdateStatus = 'current'";
    t.after(() => hub.registry.removeConfiguration('chillers').catch(() => {}));
    const { responseBody: added } = await hub.registry.addConfiguration({
        id: 'chillers',
        labels: { rollout: 'first' },
        content: { deviceContent: { 'properties.desired.firmware': firmware } },
        targetCondition: "tags.devicetype = 'chiller'",
        priority: 20,
        metrics: { queries: { current } },
    });
    assert.equal(added.id, 'chillers');
    assert.equal(added.schemaVersion, '1.0');
    assert.ok(added.etag);

    // A device that begins to match gets it, as the one that matched already.
    await hub.registry.updateTwin('chiller-1', { tags: { devicetype: 'chiller' } }, '*');
    await hub.waitFor(() => received.some((patch) => patch.firmware?.fwVersion === '2.8.5'), 'the configuration');
    await hub.report(twin, { firmware: { fwUpdateStatus: 'current' } });
    let configuration;
    await hub.waitFor(async () => {
        configuration = (await hub.registry.getConfiguration('chillers')).responseBody;
        const { targetedCount, appliedCount } = configuration.systemMetrics.results;
        return targetedCount === 2 && appliedCount === 2 && configuration.metrics.results.current === 1;
    }, 'the metrics');
    const applied = "SELECT deviceId FROM devices WHERE configurations.[[chillers]].status = 'Applied'";
    const rows = await hub.everyRow(hub.registry.createQuery(applied));
    assert.deepEqual(rows.map((row) => row.deviceId).sort(), ['chiller-1', 'chiller-2']);
    const { responseBody: all } = await hub.registry.getConfigurations();
    assert.deepEqual(all.map((one) => one.id), ['chillers']);

    // A newer one under its etag; a stale etag is refused.
    const newer = { ...configuration, priority: 30, labels: { rollout: 'second' } };
    const { responseBody: updated } = await hub.registry.updateConfiguration(newer);
    assert.equal(updated.priority, 30);
    await assert.rejects(hub.registry.updateConfiguration({ ...newer, etag: configuration.etag }), { name: 'InvalidEtagError' });

    await hub.registry.updateTwin('chiller-1', { tags: { devicetype: null } }, '*');
    await hub.waitFor(() => received.at(-1).firmware === null, 'the withdrawal');
    await hub.registry.removeConfiguration('chillers');
    await assert.rejects(hub.registry.getConfiguration('chillers'), /Not found/);
    await hub.waitFor(async () => {
        const { responseBody: other } = await hub.registry.getTwin('chiller-2');
        return other.properties.desired.firmware === undefined;
    }, 'the withdrawal at the end');
});
