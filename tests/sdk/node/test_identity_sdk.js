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
