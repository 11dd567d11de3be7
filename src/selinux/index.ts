export {
  formatContext,
  formatRange,
  MAX_CATEGORY,
  parseCategories,
  parseContext,
  parseRange,
  type SelinuxContext,
  type SelinuxLevel,
  type SelinuxRange,
} from './context.js';
export { adviseOn, type Denial, type DenialAdvice, type DenialFeed, followDenials, parseDenial } from './denials.js';
export { restoreLabels } from './files.js';
export { checkContext, fileContext, getContext, isEnabled, mode, type SelinuxMode } from './host.js';
export {
  checkModule,
  installModule,
  removeModule,
  type SelinuxFinding,
  type SelinuxStatus,
  selinuxStatus,
} from './module.js';
export type { SelinuxOptions, SelinuxRequirement } from './request.js';
