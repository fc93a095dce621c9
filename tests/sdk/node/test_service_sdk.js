// The official Node.js service SDK against the emulator.

'use strict';

const assert = require('node:assert/strict');
const test = require('node:test');

const { Registry } = require('azure-iothub');

const hub = require('./hub');

const KEY = 'MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=';

// Rejected with this error of the SDK.
const refused = (promise, name) => assert.rejects(promise, (error) => (assert.equal(error.name, name, error.message), true));

test('devices are created, read, changed and deleted', async (t) => {
    await hub.newDevice(t, 'registry-1');
    const { responseBody: created } = await hub.registry.get('registry-1');
    assert.equal(created.deviceId, 'registry-1');
    assert.ok(created.authentication.symmetricKey.primaryKey.length > 40);
    assert.equal(created.connectionState, 'Disconnected');
    await refused(hub.registry.create({ deviceId: 'registry-1' }), 'DeviceAlreadyExistsError');

    const authentication = { symmetricKey: { primaryKey: KEY, secondaryKey: KEY } };
    const change = { deviceId: 'registry-1', status: 'disabled', statusReason: 'lost', authentication };
    const { responseBody: updated } = await hub.registry.update(change);
    assert.equal(updated.status, 'disabled');
    assert.equal(updated.statusReason, 'lost');
    assert.equal(updated.authentication.symmetricKey.primaryKey, KEY);
    assert.notEqual(updated.etag, created.etag);

    await hub.registry.delete('registry-1');
    await refused(hub.registry.get('registry-1'), 'DeviceNotFoundError');
    await refused(hub.registry.delete('registry-1'), 'DeviceNotFoundError');
});

test('devices are listed and counted', async (t) => {
    for (const id of ['list-1', 'list-2', 'list-3']) await hub.newDevice(t, id);
    const { responseBody: listed } = await hub.registry.list();
    const names = listed.map((device) => device.deviceId);
    for (const id of ['list-1', 'list-2', 'list-3']) assert.ok(names.includes(id), id);
    const { responseBody: statistics } = await hub.registry.getRegistryStatistics();
    assert.equal(statistics.totalDeviceCount, names.length);
});

test('an odd device id survives the path', async (t) => {
    const id = "a:b@c.d%2B(e)'f";
    await hub.newDevice(t, id);
    const { responseBody: twin } = await hub.registry.getTwin(id);
    assert.equal(twin.deviceId, id);
});

test('self-signed devices keep their thumbprints', async (t) => {
    const x509Thumbprint = { primaryThumbprint: 'A'.repeat(40), secondaryThumbprint: 'b'.repeat(64) };
    const device = { deviceId: 'x509-1', authentication: { type: 'selfSigned', x509Thumbprint } };
    t.after(() => hub.registry.delete('x509-1'));
    const { responseBody: created } = await hub.registry.create(device);
    assert.equal(created.authentication.type, 'selfSigned');
    assert.deepEqual(created.authentication.x509Thumbprint, x509Thumbprint);
});

test('twins are merged under their etag', async (t) => {
    await hub.newDevice(t, 'twin-1');
    const { responseBody: twin } = await hub.registry.getTwin('twin-1');
    assert.equal(twin.etag, 'AAAAAAAAAAE=');
    const patch = { tags: { site: 'lab', row: 3 }, properties: { desired: { fw: { v: '1' } } } };
    const { responseBody: patched } = await hub.registry.updateTwin('twin-1', patch, twin.etag);
    assert.deepEqual(patched.tags, { site: 'lab', row: 3 });
    assert.deepEqual(patched.properties.desired.fw, { v: '1' });
    assert.equal(patched.properties.desired.$version, 2);
    await refused(hub.registry.updateTwin('twin-1', patch, twin.etag), 'InvalidEtagError');

    // A twin of the SDK changes itself, under the etag that it was read with, and reads itself again.
    const { result: changed } = await patched.update({ tags: { row: null } });
    assert.deepEqual(changed.tags, { site: 'lab' });
    await refused(twin.update({ tags: { row: 1 } }), 'InvalidEtagError');
    const { result: read } = await twin.get();
    assert.equal(read.etag, changed.etag);

    await refused(hub.registry.updateTwin('twin-1', { tags: { 'a.b': 1 } }, '*'), 'ArgumentError');
    await refused(hub.registry.getTwin('nobody'), 'DeviceNotFoundError');
});

test('methods are answered or fail as documented', async (t) => {
    const connectionString = await hub.newDevice(t, 'method-1');
    const call = () => hub.invoke('method-1', 'm', { a: 1 }, { responseTimeoutInSeconds: 5 });
    await assert.rejects(call(), /Not found/);
    await refused(hub.invoke('nobody', 'm', {}), 'DeviceNotFoundError');
    await refused(hub.invoke('method-1', 'm', {}, { responseTimeoutInSeconds: 1 }), 'ArgumentError');

    const late = hub.invoke('method-1', 'm', { a: 1 }, { connectTimeoutInSeconds: 20 });
    const client = await hub.connect(t, connectionString);
    // Connected, but not listening to methods yet.
    await assert.rejects(call(), /Not found/);
    hub.answerMethods(client, 'm');
    assert.deepEqual(await late, { status: 200, payload: { echo: { a: 1 }, name: 'm' } });
    assert.deepEqual(await call(), { status: 200, payload: { echo: { a: 1 }, name: 'm' } });

    // The SDK's device leaves a method unanswered that it has no handler for.
    const started = Date.now();
    await refused(hub.invoke('method-1', 'other', null, { responseTimeoutInSeconds: 5 }), 'GatewayTimeoutError');
    assert.ok(Date.now() - started >= 4900);
});

test('queries select, project, group and page', async (t) => {
    for (const [id, site] of [['q-1', 'lab'], ['q-2', 'lab'], ['q-3', 'roof']]) {
        await hub.newDevice(t, id);
        await hub.registry.updateTwin(id, { tags: { site } }, '*');
    }
    const query = hub.registry.createQuery("SELECT * FROM devices WHERE tags.site = 'lab'");
    const { result: twins } = await query.nextAsTwin();
    assert.deepEqual(twins.map((twin) => [twin.deviceId, twin.tags.site]), [['q-1', 'lab'], ['q-2', 'lab']]);
    assert.equal(query.hasMoreResults, false);

    const count = 'SELECT tags.site AS place, COUNT() AS n FROM devices WHERE IS_DEFINED(tags.site) GROUP BY tags.site';
    const rows = await hub.everyRow(hub.registry.createQuery(count));
    assert.deepEqual(rows.sort((a, b) => b.n - a.n), [{ place: 'lab', n: 2 }, { place: 'roof', n: 1 }]);

    const paged = hub.registry.createQuery("SELECT deviceId FROM devices WHERE STARTSWITH(deviceId, 'q-')", 2);
    const { result: first } = await paged.next();
    assert.deepEqual(first, [{ deviceId: 'q-1' }, { deviceId: 'q-2' }]);
    assert.equal(paged.hasMoreResults, true);
    const { result: rest } = await paged.next(paged.continuationToken);
    assert.deepEqual(rest, [{ deviceId: 'q-3' }]);
    assert.equal(paged.hasMoreResults, false);
    await refused(hub.registry.createQuery('SELECT * FROM devices WHERE').next(), 'ArgumentError');
});

test('a wrong key is unauthorised', async () => {
    const stranger = hub.READY.serviceConnectionString.replace(/SharedAccessKey=.*/, `SharedAccessKey=${KEY}`);
    await refused(Registry.fromConnectionString(stranger).getTwin('any'), 'UnauthorizedError');
});
