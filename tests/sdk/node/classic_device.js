// A device as the classic firmware update tutorial has it, with the official device SDK: it answers the method at once,
// then fetches the package and plays an installation, and reports each step under `iothubDM.firmwareUpdate` with a pause
// in between.
//
// The environment gives its connection string (CONNECTION_STRING) and the pause in milliseconds (PAUSE, 4000).

'use strict';

const https = require('node:https');
const { setTimeout: pause } = require('node:timers/promises');

const { Client } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');

const PAUSE = Number(process.env.PAUSE ?? 4000);
const now = () => new Date().toISOString();

const client = Client.fromConnectionString(process.env.CONNECTION_STRING, Mqtt);

// The package's URL, from an object or from JSON in a string.
function packageUri(payload) {
    return (typeof payload === 'string' ? JSON.parse(payload) : payload).fwPackageUri;
}

// Fetches the package; its bytes.
function download(uri) {
    return new Promise((resolve, reject) => {
        const request = https.get(uri, (response) => {
            const parts = [];
            response.on('error', reject);
            response.on('data', (part) => parts.push(part));
            response.on('end', () => {
                const { statusCode: code, statusMessage: message } = response;
                if (code === 200) resolve(Buffer.concat(parts));
                else reject(Object.assign(new Error(message), { code }));
            });
        });
        request.on('error', reject);
    });
}

async function update(twin, fwPackageUri) {
    const report = (firmwareUpdate) =>
        new Promise((resolve, reject) => {
            const patch = { iothubDM: { firmwareUpdate } };
            twin.properties.reported.update(patch, (error) => (error ? reject(error) : resolve()));
        });
    await report({ fwPackageUri, status: 'waiting', error: null, startedWaitingTime: now() });
    await pause(PAUSE);
    await report({ status: 'downloading' });
    await pause(PAUSE);
    let image;
    try {
        image = await download(fwPackageUri);
    } catch ({ code, message }) {
        await report({ status: 'downloadfailed', error: { code, message } });
        return;
    }
    console.log('downloaded', image.length);
    await report({ status: 'downloadComplete', downloadCompleteTime: now() });
    await pause(PAUSE);
    await report({ status: 'applying', startedApplyingImage: now() });
    await pause(PAUSE);
    await report({ status: 'applyComplete', lastFirmwareUpdate: now() });
}

function fail(error) {
    console.error(error);
    process.exit(1);
}

client.open((error) => {
    if (error) fail(error);
    client.onDeviceMethod('firmwareUpdate', (request, response) => {
        const uri = packageUri(request.payload);
        response.send(200, 'FirmwareUpdate started', (error) => {
            if (error) fail(error);
            client.getTwin((error, twin) => {
                if (error) fail(error);
                update(twin, uri).catch(fail);
            });
        });
    });
});
