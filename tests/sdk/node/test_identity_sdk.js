// The official Node.js SDKs against the emulator where a device shows a certificate or is provisioned.

'use strict';

const assert = require('node:assert/strict');
const { createHmac } = require('node:crypto');
const test = require('node:test');

const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { Mqtt: ProvisioningMqtt, MqttWs: ProvisioningMqttWs } = require('azure-iot-provisioning-device-mqtt');
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');
const { X509Security } = require('azure-iot-security-x509');

const hub = require('./hub');

const x509 = (deviceId) => `HostName=${hub.READY.hubName};DeviceId=${deviceId};x509=true`;

// A certificate for this device, or one of its own signing.
const certify = (deviceId, query = '') => hub.control('POST', `/certificates/${deviceId}${query}`);

// Registers a device that shows a certificate.
async function newX509Device(t, deviceId, authentication) {
    await hub.registry.create({ deviceId, authentication });
    t.after(() => hub.registry.delete(deviceId).catch(() => {}));
}

async function assertWorks(t, deviceId, transport, { certificate, privateKey }) {
    const client = await hub.connect(t, x509(deviceId), { transport, cert: certificate, key: privateKey });
    hub.answerMethods(client, 'm');
    await hub.report(await hub.twinOf(client), { by: 'certificate' });
    const answer = await hub.invoke(deviceId, 'm', { a: 1 }, { connectTimeoutInSeconds: 10 });
    assert.deepEqual(answer, { status: 200, payload: { echo: { a: 1 }, name: 'm' } });
}

for (const [name, transport] of [['MQTT', Mqtt], ['WebSocket', MqttWs]]) {
    test(`a self-signed certificate is known by its thumbprint over ${name}`, async (t) => {
        const deviceId = `self-signed-${name}`;
        const made = await certify(deviceId, '?self-signed=true');
        const x509Thumbprint = { primaryThumbprint: made.sha256Thumbprint, secondaryThumbprint: made.sha1Thumbprint };
        await newX509Device(t, deviceId, { type: 'selfSigned', x509Thumbprint });
        await assertWorks(t, deviceId, transport, made);
        const other = await certify(deviceId, '?self-signed=true');
        const refused = hub.connect(t, x509(deviceId), { transport, cert: other.certificate, key: other.privateKey });
        await assert.rejects(refused, /Not authorized|Unauthorized/);
    });

    test(`a certificate of a registered CA names its device over ${name}`, async (t) => {
        const deviceId = `ca-signed-${name}`;
        await newX509Device(t, deviceId, { type: 'certificateAuthority' });
        await assertWorks(t, deviceId, transport, await certify(deviceId));
        const another = await certify('another-device');
        const refused = hub.connect(t, x509(deviceId), { transport, cert: another.certificate, key: another.privateKey });
        await assert.rejects(refused, /Not authorized|Unauthorized/);
    });
}

// What the provisioning service says to a device that registers with these means.
async function register(t, security, { transport = new ProvisioningMqtt(), payload, scope = hub.READY.dps.idScope } = {}) {
    const client = ProvisioningDeviceClient.create(hub.READY.dps.host, scope, transport, security);
    if (payload) client.setProvisioningPayload(payload);
    const state = await client.register();
    t.after(() => hub.registry.delete(state.deviceId).catch(() => {}));
    return state;
}

const groupKeyOf = (registrationId) => {
    const secret = Buffer.from(hub.READY.dps.groupKey, 'base64');
    return createHmac('sha256', secret).update(registrationId).digest('base64');
};

for (const [name, Transport] of [['MQTT', ProvisioningMqtt], ['WebSocket', ProvisioningMqttWs]]) {
    test(`a device of a group is provisioned by its derived key over ${name}`, async (t) => {
        const id = `group-${name.toLowerCase()}`;
        const key = groupKeyOf(id);
        const security = new SymmetricKeySecurityClient(id, key);
        const state = await register(t, security, { transport: new Transport(), payload: { modelId: 'dtmi:a:b;1' } });
        assert.equal(state.status, 'assigned');
        assert.equal(state.assignedHub, hub.READY.hubName);
        assert.equal(state.deviceId, id);

        const connectionString = `HostName=${state.assignedHub};DeviceId=${state.deviceId};SharedAccessKey=${key}`;
        const client = await hub.connect(t, connectionString);
        await hub.report(await hub.twinOf(client), { provisioned: true });

        // Again: the same device, whose twin is kept.
        const again = await register(t, security, { transport: new Transport() });
        assert.equal(again.deviceId, id);
        const { responseBody: twin } = await hub.registry.getTwin(id);
        assert.equal(twin.properties.reported.provisioned, true);
    });
}

test('a device is provisioned by a certificate', async (t) => {
    const id = 'certified';
    const { certificate, privateKey } = await certify(id);
    const state = await register(t, new X509Security(id, { cert: certificate, key: privateKey }));
    assert.equal(state.status, 'assigned');
    assert.equal(state.deviceId, id);
    await assertWorks(t, id, Mqtt, { certificate, privateKey });
});

test('an enrolment of its own names the device, gives it a payload and may be disabled', async (t) => {
    const enrolled = await hub.control('PUT', '/dps/enrollments/serial-7', { deviceId: 'pi-07', payload: { welcome: true } });
    const security = new SymmetricKeySecurityClient('serial-7', enrolled.attestation.primaryKey);
    const state = await register(t, security);
    assert.equal(state.deviceId, 'pi-07');
    assert.deepEqual(state.payload, { welcome: true });
    await hub.control('PUT', '/dps/enrollments/serial-7', { status: 'disabled' });
    await assert.rejects(register(t, security));
});

test('a throttled registration is tried again', async (t) => {
    const isInForce = async () => JSON.stringify(await hub.control('GET', '/faults')).includes('fail-registrations');
    await hub.control('POST', '/fail-registrations?count=1&status=429');
    assert.ok(await isInForce());
    const state = await register(t, new SymmetricKeySecurityClient('throttled', groupKeyOf('throttled')));
    assert.equal(state.status, 'assigned');
    assert.ok(!(await isInForce()));
    assert.equal((await hub.control('GET', '/dps/registrations/throttled')).count, 1);
});

test('a wrong key or scope is not provisioned', async (t) => {
    const wrong = new SymmetricKeySecurityClient('group-wrong', groupKeyOf('another'));
    await assert.rejects(register(t, wrong));
    const right = new SymmetricKeySecurityClient('group-wrong', groupKeyOf('group-wrong'));
    await assert.rejects(register(t, right, { scope: '0ne99999999' }));
    await assert.rejects(hub.registry.get('group-wrong'), { name: 'DeviceNotFoundError' });
});
