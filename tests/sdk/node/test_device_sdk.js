// The official Node.js device SDK against the emulator; the service side is played by the service SDK.

'use strict';

const assert = require('node:assert/strict');
const test = require('node:test');

const { Message } = require('azure-iot-device');
const { MqttWs } = require('azure-iot-device-mqtt');

const hub = require('./hub');

async function connections(deviceId) {
    return (await hub.control('GET', `/devices/${deviceId}`)).connections;
}

async function assertMethodsWork(deviceId, payload) {
    const answer = await hub.invoke(deviceId, 'firmwareUpdate', payload, { connectTimeoutInSeconds: 30 });
    assert.deepEqual(answer, { status: 200, payload: { echo: payload, name: 'firmwareUpdate' } });
}

test('reads the twin and reports', async (t) => {
    const client = await hub.connect(t, await hub.newDevice(t, 'twin'));
    const twin = await hub.twinOf(client);
    assert.equal(twin.properties.desired.$version, 1);
    await hub.report(twin, { iothubDM: { firmwareUpdate: { status: 'waiting', error: 'x' } } });
    await hub.report(twin, { iothubDM: { firmwareUpdate: { status: 'downloading', error: null } } });
    const { responseBody: seen } = await hub.registry.getTwin('twin');
    assert.deepEqual(seen.properties.reported.iothubDM, { firmwareUpdate: { status: 'downloading' } });
    assert.equal(seen.properties.reported.$version, 3);
    const read = await new Promise((resolve, reject) => twin.get((error, now) => (error ? reject(error) : resolve(now))));
    assert.deepEqual(read.properties.reported.iothubDM, { firmwareUpdate: { status: 'downloading' } });
});

test('a refused patch is an error', async (t) => {
    const client = await hub.connect(t, await hub.newDevice(t, 'refused'));
    const twin = await hub.twinOf(client);
    for (const status of [400, 429, 500]) {
        await hub.control('POST', `/fail-twin-patches?count=1&status=${status}`);
        await assert.rejects(hub.report(twin, { a: status }), /Failed on request/);
    }
    await hub.report(twin, { a: 200 });
    const { responseBody: seen } = await hub.registry.getTwin('refused');
    assert.equal(seen.properties.reported.a, 200);
});

test('receives desired changes', async (t) => {
    const client = await hub.connect(t, await hub.newDevice(t, 'desired'));
    const twin = await hub.twinOf(client);
    const patches = [];
    const versions = [];
    twin.on('properties.desired', (patch) => patches.push(patch));
    twin.on('properties.desired.firmware.fwVersion', (version) => versions.push(version));
    // The first event is the twin as it was read; the subscription follows it.
    await hub.subscribed('desired', 'desired-changes');
    await hub.registry.updateTwin('desired', { properties: { desired: { firmware: { fwVersion: '1.4.0' } } } }, '*');
    await hub.waitFor(() => versions.length > 0, 'the desired change');
    assert.deepEqual(versions, ['1.4.0']);
    assert.deepEqual(patches.at(-1), { firmware: { fwVersion: '1.4.0' }, $version: 2 });
    await hub.registry.updateTwin('desired', { properties: { desired: { firmware: null } } }, '*');
    await hub.waitFor(() => patches.at(-1).$version === 3, 'the deletion');
    assert.equal(patches.at(-1).firmware, null);
    assert.equal(twin.properties.desired.firmware, undefined);
});

test('answers methods, with hexadecimal ids too', async (t) => {
    const client = await hub.connect(t, await hub.newDevice(t, 'methods'));
    hub.answerMethods(client, 'echo.method-1');
    const payloads = [{ fwPackageUri: 'https://x/y' }, 'text', '{"fwPackageUri":"https://x/y"}', 5, true, [1, null], 0, ''];
    await hub.subscribed('methods', 'methods');
    for (const payload of [...payloads, ...payloads]) {
        const answer = await hub.invoke('methods', 'echo.method-1', payload);
        assert.deepEqual(answer, { status: 200, payload: { echo: payload, name: 'echo.method-1' } });
    }
    // The SDK gives this one a status and no body.
    client.onDeviceMethod('bare', (_, response) => response.send(404));
    assert.deepEqual(await hub.invoke('methods', 'bare', null), { status: 404, payload: null });
});

test('answers methods after a dropped connection', async (t) => {
    const client = await hub.connect(t, await hub.newDevice(t, 'drop'));
    hub.answerMethods(client, 'firmwareUpdate');
    await assertMethodsWork('drop', { before: 'drop' });
    const twin = await hub.twinOf(client);
    const patches = [];
    twin.on('properties.desired', (patch) => patches.push(patch));
    await hub.subscribed('drop', 'desired-changes');
    const count = await connections('drop');
    assert.deepEqual(await hub.control('POST', '/devices/drop/drop'), { dropped: true });
    await hub.waitFor(async () => (await connections('drop')) > count, 'a new connection');
    await assertMethodsWork('drop', { after: 'drop' });
    await hub.registry.updateTwin('drop', { properties: { desired: { after: 'drop' } } }, '*');
    await hub.waitFor(() => patches.some((patch) => patch.after === 'drop'), 'the desired change');
});

test('answers methods after a token renewal', async (t) => {
    // The SDK renews fifteen minutes before the end: here after three seconds.
    const tokenRenewal = { tokenValidTimeInSeconds: 903, tokenRenewalMarginInSeconds: 900 };
    const client = await hub.connect(t, await hub.newDevice(t, 'renewal'), { tokenRenewal });
    hub.answerMethods(client, 'firmwareUpdate');
    await assertMethodsWork('renewal', { before: 'renewal' });
    const count = await connections('renewal');
    await hub.waitFor(async () => (await connections('renewal')) > count, 'a token renewal');
    // It subscribes to nothing again: the hub must have kept the session.
    await assertMethodsWork('renewal', { after: 'renewal' });
    await hub.report(await hub.twinOf(client), { renewed: true });
});

test('comes back after an outage', async (t) => {
    const client = await hub.connect(t, await hub.newDevice(t, 'outage'));
    hub.answerMethods(client, 'firmwareUpdate');
    await assertMethodsWork('outage', { before: 'outage' });
    const count = await connections('outage');
    await hub.control('POST', '/outage?seconds=2');
    await hub.waitFor(async () => (await connections('outage')) > count, 'a new connection');
    await assertMethodsWork('outage', { after: 'outage' });
});

test('sends telemetry', async (t) => {
    const client = await hub.connect(t, await hub.newDevice(t, 'telemetry'));
    const message = new Message('{"temperature":21}');
    message.messageId = 'id-0';
    message.contentType = 'application/json';
    message.contentEncoding = 'utf-8';
    message.properties.add('k v', 'a/b&c=d');
    await client.sendEvent(message);
    const [kept] = await hub.control('GET', '/devices/telemetry/telemetry');
    assert.equal(kept.body, '{"temperature":21}');
    assert.equal(kept.properties['$.mid'], 'id-0');
    assert.equal(kept.properties['$.ct'], 'application/json');
    assert.equal(kept.properties['$.ce'], 'utf-8');
    assert.equal(kept.properties['k v'], 'a/b&c=d');
});

test('a wrong key is refused', async (t) => {
    const right = await hub.newDevice(t, 'stranger');
    const wrong = right.replace(/SharedAccessKey=.*/, 'SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=');
    await assert.rejects(hub.connect(t, wrong), /Not authorized|Unauthorized/);
    assert.ok((await hub.control('GET', '/devices/stranger')).refusals >= 1);
});

test('everything works over WebSocket', async (t) => {
    const client = await hub.connect(t, await hub.newDevice(t, 'websocket'), { transport: MqttWs });
    hub.answerMethods(client, 'firmwareUpdate');
    const twin = await hub.twinOf(client);
    const large = Object.fromEntries([...Array(7).keys()].map((n) => [`k${n}`, 'x'.repeat(4000)]));
    await hub.report(twin, { large });
    assert.deepEqual((await hub.twinOf(client)).properties.reported.large, large);
    await assertMethodsWork('websocket', { large: 'y'.repeat(100_000) });
});
