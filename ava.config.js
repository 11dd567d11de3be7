// The rig brings this file along, and is the only place where its own tests run.
const inRig = process.env.CASEMATE_RIG !== undefined;

export default {
  files: ['build/test/**/*.test.js', ...(inRig ? [] : ['!build/test/rig/**'])],
  workerThreads: false,
  timeout: '4m',
  nodeArguments: ['--enable-source-maps'],
};
