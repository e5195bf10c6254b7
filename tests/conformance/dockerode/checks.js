// What dockerode, the SDK of Node, does against a node's socket. Prints one JSON line per check: name, and an error.
'use strict';
const assert = require('node:assert');
const { PassThrough } = require('node:stream');
const { setTimeout: sleep } = require('node:timers/promises');
const Docker = require('dockerode');

const docker = new Docker({ socketPath: process.argv[2] });
const worker = new Docker({ socketPath: process.argv[3] });
const IMAGE = 'localhost/whoami';
const NAME = 't-node';

const service = (extra = {}) => ({
  Name: NAME,
  TaskTemplate: { ContainerSpec: { Image: IMAGE } },
  Mode: { Replicated: { Replicas: 0 } },
  ...extra,
});

async function refused(promise, status, words) {
  await assert.rejects(promise, (error) => {
    assert.strictEqual(error.statusCode, status, error.message);
    assert.match(error.message, words);
    return true;
  });
}

async function eventually(look) {
  for (let left = 200; ; left--) {
    try {
      return await look();
    } catch (error) {
      if (!left) throw error;
      await sleep(50);
    }
  }
}

async function clean() {
  const quietly = (promise) => promise.catch(() => {});
  await quietly(docker.getContainer(NAME).remove({ force: true }));
  await quietly(docker.getService(NAME).remove());
  await quietly(docker.getSecret(NAME).remove());
  await quietly(docker.getConfig(NAME).remove());
  await eventually(async () => {
    try {
      await docker.getNetwork(NAME).remove();
    } catch (error) {
      if (error.statusCode !== 404) throw error;
    }
  });
}

const checks = {
  async ping() {
    assert.strictEqual(String(await docker.ping()), 'OK');
  },
  async version() {
    assert.strictEqual((await docker.version()).ApiVersion, '1.51');
  },
  async info() {
    assert.strictEqual((await docker.info()).Swarm.LocalNodeState, 'active');
  },
  async swarm_inspect() {
    assert.match((await docker.swarmInspect()).JoinTokens.Worker, /^SWMTKN-1-/);
  },
  async swarm_init_refused() {
    await refused(docker.swarmInit({ ListenAddr: '0.0.0.0:2377' }), 503, /already part of a swarm/);
  },
  async nodes() {
    const names = (await docker.listNodes()).map((node) => node.Description.Hostname);
    assert.deepStrictEqual(names.sort(), ['n1', 'n2']);
  },
  async node_update() {
    const [found] = await docker.listNodes({ filters: { name: ['n2'] } });
    const node = docker.getNode(found.ID);
    await node.update({ version: found.Version.Index, ...found.Spec, Labels: { js: '1' } });
    const fresh = await node.inspect();
    assert.deepStrictEqual(fresh.Spec.Labels, { js: '1' });
    await node.update({ version: fresh.Version.Index, ...fresh.Spec, Labels: {} });
  },
  async services() {
    const names = (await docker.listServices()).map((found) => found.Spec.Name);
    assert.ok(names.includes('web') && names.includes('agent'));
  },
  async services_by_label() {
    const found = await docker.listServices({ filters: { label: ['tier=web'] } });
    assert.deepStrictEqual(found.map((one) => one.Spec.Name), ['web']);
  },
  async service_life() {
    const made = await docker.createService(service({ Mode: { Replicated: { Replicas: 1 } } }));
    await eventually(async () => {
      const tasks = await docker.listTasks({ filters: { service: [NAME], 'desired-state': ['running'] } });
      assert.strictEqual(tasks[0].Status.State, 'running');
    });
    await made.remove();
    await refused(docker.getService(NAME).inspect(), 404, /service t-node not found/);
  },
  async service_update() {
    const made = await docker.createService(service());
    const seen = await made.inspect();
    await made.update({ ...service(), Labels: { a: 'b' }, version: seen.Version.Index });
    assert.deepStrictEqual((await made.inspect()).Spec.Labels, { a: 'b' });
    await refused(made.update({ ...service(), version: seen.Version.Index }), 500, /update out of sequence/);
  },
  async service_taken() {
    await refused(docker.createService(service({ Name: 'web' })), 409, /already exists/);
  },
  async service_bad_port() {
    const ports = { Ports: [{ TargetPort: 80, PublishedPort: 70000 }] };
    await refused(docker.createService(service({ EndpointSpec: ports })), 400, /70000/);
  },
  async service_logs() {
    const stream = await docker.getService('web').logs({ stdout: true, stderr: true });
    assert.ok(stream);
  },
  async tasks() {
    const [task] = await docker.listTasks({ filters: { service: ['web'] } });
    assert.strictEqual((await docker.getTask(task.ID).inspect()).ID, task.ID);
  },
  async network_life() {
    const made = await docker.createNetwork({ Name: NAME, Driver: 'overlay', Attachable: true });
    assert.strictEqual((await made.inspect()).Scope, 'swarm');
    await made.connect({ Container: 'box', EndpointConfig: { Aliases: ['other'] } });
    assert.ok((await docker.getContainer('box').inspect()).NetworkSettings.Networks[NAME]);
    await made.disconnect({ Container: 'box' });
    await made.remove();
  },
  async network_in_use() {
    await refused(docker.getNetwork('front').remove(), 400, /is in use/);
  },
  async networks_by_driver() {
    const found = await docker.listNetworks({ filters: { driver: ['overlay'] } });
    assert.ok(found.every((network) => network.Driver === 'overlay') && found.length >= 2);
  },
  async secret_life() {
    const made = await docker.createSecret({ Name: NAME, Data: Buffer.from('x').toString('base64') });
    const seen = await docker.getSecret(made.id).inspect();
    assert.strictEqual(seen.Spec.Data, undefined);
    await docker.getSecret(made.id).update({ ...seen.Spec, Labels: { a: 'b' }, version: seen.Version.Index });
    await docker.getSecret(made.id).remove();
  },
  async config_life() {
    const made = await docker.createConfig({ Name: NAME, Data: Buffer.from('x').toString('base64') });
    assert.strictEqual((await docker.getConfig(made.id).inspect()).Spec.Data, 'eA==');
    await docker.getConfig(made.id).remove();
  },
  async container_run() {
    const out = new PassThrough();
    const chunks = [];
    out.on('data', (chunk) => chunks.push(chunk));
    const options = { name: NAME, Tty: false, HostConfig: { NetworkMode: 'front' } };
    const [result] = await docker.run(IMAGE, ['echo', 'hello'], out, options);
    assert.strictEqual(result.StatusCode, 0);
    assert.match(Buffer.concat(chunks).toString(), /hello/);
  },
  async container_exec() {
    const command = await docker.getContainer('box').exec({ Cmd: ['sh', '-c', 'echo there'], AttachStdout: true });
    const stream = await command.start({});
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    assert.match(Buffer.concat(chunks).toString(), /there/);
    assert.strictEqual((await command.inspect()).ExitCode, 0);
  },
  async containers() {
    const found = await docker.listContainers({ filters: { label: ['kind=box'] } });
    assert.deepStrictEqual(found.map((one) => one.Names[0]), ['/box']);
    assert.ok(found[0].NetworkSettings.Networks.front);
  },
  async events() {
    const stream = await docker.getEvents({ filters: { type: ['service'], event: ['create'] } });
    const made = await docker.createService(service());
    for await (const chunk of stream) {
      const event = JSON.parse(chunk.toString().split('\n')[0]);
      assert.deepStrictEqual([event.Action, event.Actor.ID], ['create', made.id]);
      break;
    }
  },
  async images() {
    assert.ok((await docker.listImages()).some((image) => (image.RepoTags || []).some((tag) => tag.startsWith(IMAGE))));
  },
  async volume_life() {
    await docker.createVolume({ Name: NAME });
    await docker.getVolume(NAME).remove();
  },
  async worker_refuses() {
    await refused(worker.listServices(), 503, /Worker nodes can't be used/);
  },
  async worker_lists_networks() {
    assert.ok((await worker.listNetworks()).some((network) => network.Name === 'front'));
  },
};

(async () => {
  for (const [name, check] of Object.entries(checks)) {
    let error = '';
    try {
      await Promise.race([check(), sleep(20000, null, { ref: false }).then(() => Promise.reject(Error('no end')))]);
    } catch (failure) {
      error = String(failure.stack || failure);
    }
    await clean();
    console.log(JSON.stringify({ name, error }));
  }
  process.exit(0);
})();
