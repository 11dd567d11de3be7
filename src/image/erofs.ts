import { identifier } from './identifier.js';
import { tarStream } from './tar-writer.js';
import { imageTime, runTool } from './tool.js';
import type { Entry } from './tree.js';

/**
 * Makes an erofs image of a checked tree, by mkfs.erofs(1) from an archive, which holds owners and devices without any
 * rights: 1.7 or newer.
 */
export async function makeErofs(tree: readonly Entry[], path: string): Promise<void> {
  // Without a source it reads its standard input; as a path that is a socket, which cannot be opened.
  await runTool('mkfs.erofs', ['--tar=f', '--quiet', `-T${imageTime}`, '-U', identifier(tree), path], {
    package: 'erofs-utils (1.7 or newer)',
    input: tarStream(tree),
  });
}
