export { type EncodedPlan, encodePlan } from './encode.js';
export { type JailOptions, type LayerName, type LayerState, layerNames } from './profiles.js';
export { type SeccompAction, type SeccompRule, seccompFilter } from './seccomp.js';
export { JailedProcess, type SpawnOptions, spawn } from './spawn.js';
export type { Check, NamespaceKind, Plan, RlimitResource, Step, StepName } from './steps.js';
export * as steps from './steps.js';
export { type SyscallName, syscallName, syscalls } from './syscalls.js';
export { type RunStepsOptions, runSteps } from './thread.js';
export { type IdMapping, type UserNamespaceOptions, userNamespace } from './user-namespace.js';
