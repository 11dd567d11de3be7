/** The package is ESM; what `require()` makes of it is up to Node. */
import { createRequire } from 'node:module';
import test from 'ava';
import * as casemate from 'casemate';
import * as image from 'casemate/image';
import * as jail from 'casemate/jail';
import * as kvm from 'casemate/kvm';
import * as selinux from 'casemate/selinux';
import * as system from 'casemate/system';

const entries = {
  casemate,
  'casemate/image': image,
  'casemate/jail': jail,
  'casemate/kvm': kvm,
  'casemate/selinux': selinux,
  'casemate/system': system,
};

const able = (process.features as { require_module?: boolean }).require_module === true;
const declare = able ? test : test.skip;
const reason = able ? '' : ` (skipped: Node ${process.version} cannot require an ES module)`;

declare(`require() gives what import gives${reason}`, (t) => {
  const require = createRequire(import.meta.url);
  for (const [name, imported] of Object.entries(entries)) {
    const required = require(name) as Record<string, unknown>;
    for (const [key, value] of Object.entries(imported)) t.is(required[key], value, `${name}: ${key}`);
    t.true(Object.keys(imported).length > 0, name);
  }
});
