// What is built with sanitizers, by CMake: users never build any of it.
import { spawnSync } from 'node:child_process';

/** Whether CMake has built a target into a folder of `build`, with these options of CMakeLists.txt and of cmake-js. */
export function built(folder, target, ...options) {
  // Not optimized: that takes a quarter of the time, and a report says the line that it is about.
  const args = ['build', '--debug', '--target', target, '--out', `build/${folder}`, ...options];
  const { status } = spawnSync(process.execPath, ['node_modules/cmake-js/bin/cmake-js', ...args], {
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  return status === 0;
}
