export { encodePlan, type EncodedPlan } from './encode.js';
export { type JailOptions, type LayerName, layerNames, type LayerState } from './profiles.js';
export { type SeccompAction, seccompFilter, type SeccompRule } from './seccomp.js';
export { JailedProcess, spawn, type SpawnOptions } from './spawn.js';
export * as steps from './steps.js';
export { type SyscallName, syscallName, syscalls } from './syscalls.js';
export { runSteps, type RunStepsOptions } from './thread.js';
export type { Check, NamespaceKind, Plan, RlimitResource, Step, StepName } from './steps.js';
