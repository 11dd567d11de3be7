import ava from 'ava';
import { Capability, Kvm } from 'casemate/kvm';
import { type Declare, has, requires } from '../helpers/index.js';

/** Declares a test that needs a capability of KVM itself, and says so where it is skipped. */
export function requiresCapability(capability: keyof typeof Capability): Declare {
  if (!has('kvm')) return requires('kvm');
  using kvm = Kvm.open();
  if (kvm.checkExtension(Capability[capability]) > 0) return requires('kvm');
  return (title, body) => ava.skip(`${title} (skipped: this KVM has no ${capability})`, body);
}
